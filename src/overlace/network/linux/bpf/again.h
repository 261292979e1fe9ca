/* SPDX-License-Identifier: Apache-2.0 */
/* A packet whose way is known, by its unified flow or straight from the rows of its endpoints (plain.h), takes it here; MISS
 * sends it through the layers. */
#pragma once
#include "last_step.h"
#include "path_mtu.h"
#include "plain.h"
#include "qos.h"

/* Remember scratch()->unified, which plain.h found. */
INLINE void keep(struct seen *s, struct scratch *room)
{
	struct unified_flow *u = &room->unified;

	if (s->p.tcp_flags & (TCP_FIN | TCP_RST)) {
		if (s->p.tcp_flags & TCP_RST)
			note_reset(&s->p, u->verdict, u->ifindex, u->vni);
		return;
	}
	if (s->p.proto == PROTO_TCP && !s->packets && stays_newcomer(s))
		return;
	u->generation = s->p.generation;
	u->decided = u->seen = now();
	u->began = s->packets ? s->began : u->decided;
	u->from = s->p.from;
	copy_mac(u->own, s->p.own);
	u->flags = s->closed;
	u->tick = 0;
	u->packets = s->packets + 1;
	u->bytes = s->bytes + s->p.length;
	__builtin_memset(u->judged, 0, sizeof(u->judged));
	bpf_map_update_elem(&unified_flows, &s->p.came, u, BPF_ANY);
}

/* Whether the frame is VXLAN to this host, all of it plain: outer IP without options and not a fragment. */
INLINE int plain_tunnel(struct __sk_buff *ctx, const struct config *cfg, struct seen *s, host_t *provider, __u8 *tos)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct eth *eth = data;
	outer_ip_t *ip = data + ETH_LEN;
	struct {
		__be16 sport, dport, length, sum;
		__be32 flags, vni;
	} *udp = data + ETH_LEN + OUTER_HEAD;

	if ((void *)udp + sizeof(*udp) > end)
		return 0;
	if (eth->proto != bpf_htons(ETH_OUTER) || !is_plain_outer(ip) || udp->dport != cfg->vxlan_port ||
	    !same_host(ip->daddr, own_host(cfg)) || !(udp->flags & bpf_htonl(VXLAN_HAS_VNI)))
		return 0;
	s->p.came.point = AT_TUNNEL | bpf_ntohl(udp->vni) >> 8;
	*provider = ip->saddr;
	*tos = tos_of_outer(ip);
	return 1;
}

/* Take the remembered way. `tunnelled`: the packet came out of one, and its Ethernet header is still the outer one. */
INLINE int go(struct __sk_buff *ctx, struct seen *s, const struct unified_flow *u, const int tunnelled)
{
	struct config *cfg = settings();
	struct eth eth = { .proto = bpf_htons(ETH_INNER) };
	struct hop hop = { .vni = u->vni, .provider = u->provider };
	__u32 ifindex = u->ifindex;
	__u8 verdict = u->verdict;
	QUICK_ROOM(flow, as);

	as->saddr = u->saddr;
	as->daddr = u->daddr;
	as->sport = u->sport;
	as->dport = u->dport;
	if (!cfg)
		return drop(ctx, R_DROP_ERROR);
	copy_mac(hop.src, u->src);
	copy_mac(hop.dst, u->dst);
	if (renames(u, &s->p.came) && translate(ctx, &s->p, as))
		return drop(ctx, R_DROP_ERROR);
	if (verdict == U_ENCAPSULATE)
		return encapsulate(ctx, &s->p, &hop, 0);
	if (verdict == U_DELIVER) {
		if (!tunnelled)
			return into_container(ctx, ifindex, hop.dst);
		copy_mac(eth.dst, hop.dst);
		copy_mac(eth.src, s->p.own);
		if (bpf_skb_store_bytes(ctx, 0, &eth, sizeof(eth), 0))
			return drop(ctx, R_DROP_ERROR);
		bpf_skb_change_type(ctx, HOST_PACKET);
		return end(ctx, R_DELIVERED, bpf_redirect_peer(ifindex, 0));
	}
	if (verdict == U_UNDERLAY)
		return to_client(ctx, cfg, ifindex, as->daddr);
	if (verdict == U_LOOPBACK)
		return to_loopback(ctx, cfg);
	return to_host(ctx);
}

/* Whether the way can take this very packet: one that is too big is answered by the layers. */
INLINE int fits(struct __sk_buff *ctx, const struct seen *s, const struct unified_flow *u)
{
	struct config *cfg = settings();

	return cfg && (u->verdict != U_ENCAPSULATE || !too_big(ctx, path_mtu(cfg, u->provider), &s->p));
}

/* A packet that came by an interface, as it is: its end, or MISS. */
NOINLINE int again(struct __sk_buff *ctx, __u32 generation)
{
	struct unified_flow *u;
	QUICK_ROOM(seen, s);

	s->p.came.point = ctx->ifindex;
	s->p.generation = generation;
	u = unified_flow_of(ctx, 0, s);
	if (!u || !fits(ctx, s, u))
		return MISS;
	return go(ctx, s, u, 0);
}

/* A container's packet beyond its rate. */
NOINLINE int too_much(struct __sk_buff *ctx)
{
	__u32 ifindex = ctx->ifindex;
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);

	if (port)
		on_network(ctx, port->vni);
	return drop(ctx, R_DROP_RATE);
}

/* The same for a container's packet, which must bear the container's MAC. */
NOINLINE int again_from_container(struct __sk_buff *ctx, __u32 generation)
{
	struct scratch *room = scratch();
	struct unified_flow *u;
	QUICK_ROOM(seen, s);

	s->p.came.point = ctx->ifindex;
	s->p.generation = generation;
	u = unified_flow_of(ctx, 0, s);
	if (s->other_family)
		return OTHER_FAMILY;
	if (u) {
		if (!same_mac(s->p.own, u->own) || !fits(ctx, s, u))
			return MISS;
		if ((u->flags & U_METERED) && over_limit(ctx))
			return too_much(ctx);
		return go(ctx, s, u, 0);
	}
	if (!s->p.came.proto || !room || !plain_from_container(ctx, &s->p) || !fits(ctx, s, &room->unified))
		return leave_to_layers(s);
	keep(s, room);
	return go(ctx, s, &room->unified, 0);
}

/* The same for a packet in the tunnel. */
NOINLINE int again_from_underlay(struct __sk_buff *ctx, __u32 generation)
{
	struct config *cfg = settings();
	struct scratch *room = scratch();
	struct unified_flow *u;
	__u8 tos, is_known;
	QUICK_ROOM(seen, s);

	s->p.generation = generation;
	if (!cfg || !plain_tunnel(ctx, cfg, s, &s->p.from, &tos))
		return MISS;
	u = unified_flow_of(ctx, VXLAN_PUSH, s);
	if (s->other_family)
		return OTHER_FAMILY;
	is_known = u != 0;
	if (u) {
		/* a merged frame that leaves again goes through the kernel, see inbound() */
		if (!same_host(u->from, s->p.from) || (u->verdict != U_DELIVER && ctx->gso_size) || !fits(ctx, s, u))
			return MISS;
	} else {
		if (!s->p.came.proto || !room || !plain_from_tunnel(&s->p))
			return leave_to_layers(s);
		u = &room->unified;
	}
	if (pop_tunnel(ctx, tos))
		return MISS;
	if (!is_known)
		keep(s, room);
	s->p.l3 -= VXLAN_PUSH;
	s->p.l4 -= VXLAN_PUSH;
	return go(ctx, s, u, 1);
}
