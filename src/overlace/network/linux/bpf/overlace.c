// SPDX-License-Identifier: Apache-2.0
/* The data path's programs, one per kind of interface:
 *   from_container  ingress of the host side of a container's veth
 *   to_container    egress of the same: what the host's own stack sends there
 *   from_underlay   ingress of the interface that carries the underlay address
 *   from_edge       ingress of every other one with an address of the host's: clients of published ports
 *   from_vxlan      ingress of the kernel's vxlan device (slow path)
 *   from_host       ingress of lo: the host's own connections to published ports
 *   from_outside    IPv6 alone: what from_underlay and from_host get outside the tunnel
 * Packets that are not ours go on to the next program (TC_ACT_UNSPEC). */
#include "choice.h"
#include "flood.h"
#include "again.h"
#ifdef OVERLACE_IPV6
#include "edge6.h"
#else
#include "probe.h"
#endif

char LICENSE[] SEC("license") = "GPL";

#ifndef OVERLACE_IPV6
enum { SIX_CONTAINER, SIX_UNDERLAY, SIX_VXLAN, SIX_OUTSIDE, SIX_TO_CONTAINER, SIX_COUNT };

/* The programs of overlace6.c, by that number. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, SIX_COUNT);
} six_programs SEC(".maps");

/* An IPv6 packet: the other programs' from here on. */
INLINE int six(struct __sk_buff *ctx, __u32 program)
{
	bpf_tail_call(ctx, &six_programs, program);
	return drop(ctx, R_DROP_UNSUPPORTED);
}

/* The same for one outside the tunnel, which may be none of ours. */
INLINE int six_outside(struct __sk_buff *ctx)
{
	bpf_tail_call(ctx, &six_programs, SIX_OUTSIDE);
	return TC_ACT_UNSPEC;
}
#endif

/* Where a container's packet goes, by its destination. `own`: its source is an address of the container's. */
INLINE int by_destination(struct __sk_buff *ctx, struct pkt *p, struct port *port, __u32 own, struct question *q)
{
	__u32 vni = port->vni, ifindex = ctx->ifindex;
	struct endpoint *e;

	e = own ? endpoint_of(vni, &p->daddr) : 0;
	if (own && p->proto == PROTO_TCP && !p->error && (!e || e->kind == K_LOCAL || e->kind == K_REMOTE)) {
		int chosen = by_choice(ctx, p, port, e != 0, q);

		p->complain = chosen == C_NONE ? p->complain : p->daddr;
		if (chosen == C_REFUSE)
			return refuse(ctx, p);
		if (chosen == C_BALANCE) {
			if (!may_leave(p, port, ifindex))
				return drop(ctx, R_DROP_POLICY);
			return balanced(ctx, p, q);
		}
	}
	if (!e) {
		int taken = answer_outside(ctx, p, port);

		if (taken != MISS)
			return taken;
	}
	if (!e && own) {
		struct route *r;
		int taken = by_own_route(ctx, p, port);

		if (taken != MISS)
			return taken;
		r = route_of(vni, &p->daddr);
		if (r) {
			if (!may_leave(p, port, ifindex))
				return drop(ctx, R_DROP_POLICY);
			return along(ctx, p, r);
		}
	}
	if (!e) {
		int taken = leave_overlay(ctx, p, port, !own, q);
#ifdef OVERLACE_IPV6
		addr_t *here = own_address(&p->daddr);

		if (taken != MISS || !here)
			return taken;
		q->source = *here;
#else
		struct config *cfg = settings();

		if (taken != MISS || !cfg)
			return taken;
		q->source = cfg->underlay_addr;
#endif
		p->complain = p->daddr;
		q->client_vni = vni;
		return balanced(ctx, p, q);
	}
	if (!may_leave(p, port, ifindex))
		return drop(ctx, R_DROP_POLICY);
	if (e->kind == K_LOCAL || e->kind == K_REMOTE)
		return forward(ctx, p, vni, 0, 0);
	if (p->proto == PROTO_ICMP && !p->error) {
		if (p->icmp_type == ECHO_REQUEST && !p->fragment)
			return answer_echo(ctx, p);
		return drop(ctx, R_DROP_UNSUPPORTED);
	}
	if (e->kind == K_VIP) {
		p->complain = p->daddr;
		q->scope = q->client_vni = vni;
		q->front = p->daddr;
		q->source = p->saddr;
		return balanced(ctx, p, q);
	}
	struct flow *f = flow_of(vni, p); /* the gateway's name stands for the client in a hairpin */

	if (f && f->kind == F_REPLY)
		return reply(ctx, p, f);
	return refuse(ctx, p);
}

/* All of from_container for a packet that no unified flow took. */
NOINLINE int walk_from_container(struct __sk_buff *ctx, __u32 generation)
{
	__u32 ifindex = ctx->ifindex;
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	struct endpoint *e;
	struct network *net;
	struct eth eth;
	__u32 vni, bad, own;
	ROOM(pkt, p);
	ROOM(question, q);

	if (bpf_skb_load_bytes(ctx, 0, &eth, sizeof(eth)))
		return drop(ctx, R_DROP_GARBAGE);
	if (!IS_IPV6 && eth.proto == bpf_htons(ETH_IPV6))
		return OTHER_FAMILY;
	if (!port)
		return drop(ctx, IS_IPV6 ? R_DROP_UNSUPPORTED : R_DROP_NO_PORT); /* or one without IPv6 */
	vni = port->vni;
	on_network(ctx, vni);
	if (!same_mac(eth.src, port->mac))
		return drop(ctx, R_DROP_SPOOFED);
#ifndef OVERLACE_IPV6
	if (eth.proto == bpf_htons(ETH_ARP))
		return answer_arp(ctx, port);
#endif
	if ((port->flags & PORT_METERED) && over_limit(ctx))
		return drop(ctx, R_DROP_RATE);
	if (eth.proto != bpf_htons(ETH_INNER))
		return drop(ctx, R_DROP_UNSUPPORTED);
	bad = parse(ctx, ETH_LEN, vni, p);
#ifdef OVERLACE_IPV6
	if (bad == R_DROP_UNSUPPORTED && is_multicast(p->daddr)) /* multicast listeners' reports have options */
		return end_quietly(ctx);
#endif
	if (bad)
		return drop(ctx, bad);
	net = bpf_map_lookup_elem(&networks, &vni);
	if (!net)
		return drop(ctx, R_DROP_UNKNOWN_VNI);
	p->origin = FROM_CONTAINER;
	p->complain = net->gateway;
	came(p, ifindex, generation);
	copy_mac(p->own, eth.src);
	p->metered = (port->flags & PORT_METERED) != 0;
#ifdef OVERLACE_IPV6
	if (!is_flooded(net, vni, p) && is_of_the_link(p))
		return on_the_link(ctx, p, port);
#endif
	own = same(p->saddr, port->addr);
	if (own && is_flooded(net, vni, p)) {
		if (!may_leave(p, port, ifindex))
			return drop(ctx, R_DROP_POLICY);
		if (over_flood_rate(vni))
			return drop(ctx, R_DROP_FLOOD);
		return flood(ctx, p, vni, &p->saddr, 1);
	}
	if (!own) {
		e = router_of(vni, &p->saddr);
		own = e && e->kind == K_LOCAL && e->ifindex == ifindex;
	}
	return by_destination(ctx, p, port, own, q);
}

SEC("tc")
int from_container(struct __sk_buff *ctx)
{
	__u32 generation = current_generation();
	int taken;

	begin(ctx);
	taken = again_from_container(ctx, generation);
	if (taken == MISS)
		taken = walk_from_container(ctx, generation);
#ifndef OVERLACE_IPV6
	if (taken == OTHER_FAMILY)
		return six(ctx, SIX_CONTAINER);
#endif
	return taken;
}

/* Whether the frame is for the switch to see: an IP packet that the host's stack sends. Copies that flood.h made for the
 * container came by another interface and are judged there; nothing else is sent on to a group from one. */
INLINE int is_from_stack(struct __sk_buff *ctx)
{
	__u8 group;

	if (ctx->protocol != bpf_htons(ETH_INNER) || bpf_skb_load_bytes(ctx, 0, &group, 1))
		return 0;
	return !ctx->ingress_ifindex || !(group & 1);
}

/* Connections of the host's own programs to a filtered endpoint are judged like any other's, and what comes through the
 * host's NAT is known from its first packet. What the switch delivers itself does not come by here (redirect_peer). */
SEC("tc")
int to_container(struct __sk_buff *ctx)
{
	__u32 ifindex = ctx->ifindex;
	struct port *port;
	__u32 bad;
	ROOM(pkt, p);

#ifndef OVERLACE_IPV6
	if (ctx->protocol == bpf_htons(ETH_IPV6)) {
		bpf_tail_call(ctx, &six_programs, SIX_TO_CONTAINER);
		return drop(ctx, R_DROP_UNSUPPORTED);
	}
#endif
	port = bpf_map_lookup_elem(&ports, &ifindex);
	if (!port || !(port->flags & PORT_FILTERED) || !is_from_stack(ctx))
		return TC_ACT_UNSPEC;
	begin(ctx);
	bad = parse(ctx, ETH_LEN, port->vni, p);
#ifdef OVERLACE_IPV6
	if (bad == R_DROP_UNSUPPORTED ? is_multicast(p->daddr) : !bad && is_for_routers(p))
		return TC_ACT_UNSPEC; /* the kernel's own word about the link: no connection begins with it */
#else
	if (!bad && p->proto == PROTO_IGMP)
		return TC_ACT_UNSPEC;
#endif
	if (bad)
		return drop(ctx, bad);
	return admitted(p, port, ifindex, GOES_IN) ? TC_ACT_UNSPEC : drop(ctx, R_DROP_POLICY);
}

/* Take off the tunnel's `base` bytes, if there are any, and give the frame its inner Ethernet header back. MISS: done. */
INLINE int take_off_tunnel(struct __sk_buff *ctx, struct pkt *p, const struct eth *eth, __u8 tos, const __u32 base)
{
	if (!base)
		return MISS;
	if (pop_tunnel(ctx, tos))
		return MAY_NOT_POP ? TC_ACT_UNSPEC : drop(ctx, R_DROP_ERROR);
	if (bpf_skb_store_bytes(ctx, 0, eth, sizeof(*eth), 0))
		return drop(ctx, R_DROP_ERROR);
	p->l3 -= base;
	p->l4 -= base;
	return MISS;
}

/* A frame of network `vni` from the host `from`, with `base` bytes of tunnel still in front of it. */
INLINE int inbound(struct __sk_buff *ctx, __u32 vni, const host_t *from, __u8 tos, const __u32 base, __u32 generation)
{
	struct network *net = bpf_map_lookup_elem(&networks, &vni);
	struct endpoint *e;
	struct eth eth;
	struct flow *known;
	struct route *r;
	__u32 bad, outside = 0;
	int renamed = 0, taken;
	host_t provider = *from;
	ROOM(pkt, p);
	ROOM(flow, f);

	on_network(ctx, vni);
	if (!net || (net->flags & NET_LOCAL))
		return drop(ctx, IS_IPV6 ? R_DROP_UNSUPPORTED : R_DROP_UNKNOWN_VNI);
	if (bpf_skb_load_bytes(ctx, base, &eth, sizeof(eth)))
		return drop(ctx, R_DROP_GARBAGE);
	if (eth.proto != bpf_htons(ETH_INNER))
		return eth.proto == bpf_htons(ETH_IPV6) ? OTHER_FAMILY : drop(ctx, R_DROP_UNSUPPORTED);
	bad = parse(ctx, base + ETH_LEN, vni, p);
	if (bad)
		return drop(ctx, bad);
#ifdef OVERLACE_IPV6
	if (!is_flooded(net, vni, p) && is_of_the_link(p))
		return drop(ctx, R_DROP_UNSUPPORTED);
#endif
	came(p, AT_TUNNEL | vni, generation);
	p->from = provider;
	e = endpoint_of(vni, &p->saddr);
	if (e) {
		if (e->kind != K_REMOTE || !same_host(e->provider, provider))
			return drop(ctx, R_DROP_WRONG_PROVIDER);
	} else if ((r = route_of(vni, &p->saddr))) {
		if (!same_host(r->provider, provider))
			return drop(ctx, R_DROP_WRONG_PROVIDER);
	} else if ((e = router_of(vni, &p->saddr))) {
		if (e->kind != K_REMOTE || !same_host(e->provider, provider))
			return drop(ctx, R_DROP_WRONG_PROVIDER);
	} else if (!(net->flags & NET_INGRESS) || is_overlay(&p->saddr)) {
		return drop(ctx, R_DROP_WRONG_PROVIDER);
	} else {
		outside = 1;
	}
	if (!outside && is_flooded(net, vni, p)) {
		taken = take_off_tunnel(ctx, p, &eth, tos, base);
		return taken != MISS ? taken : flood(ctx, p, vni, &p->saddr, 0);
	}
	e = endpoint_of(vni, &p->daddr);
	if (!e) {
		e = router_of(vni, &p->daddr);
		if (e && e->kind != K_LOCAL)
			e = 0;
	}
	if (e && e->kind != K_LOCAL)
		return drop(ctx, R_DROP_NO_ENDPOINT);
	if (e && outside) {
		renamed = note_via(p, vni, from, e, f);
		if (renamed < 0)
			return drop(ctx, R_DROP_ERROR);
		p->noted = 1;
	} else {
		known = flow_of(e ? vni : 0, p);
		if (known && known->kind == F_REPLY && known->peer_vni == vni) {
			*f = *known;
			renamed = 1;
		}
		if (!e && (outside || !renamed))
			return drop(ctx, R_DROP_NO_ENDPOINT);
		/* A merged frame keeps its tunnel marks unless the kernel takes the header off, and a device that
		 * must cut it again would stumble over them. */
		if (!e && base && ctx->gso_size && f->out != OUT_ENDPOINT)
			return TC_ACT_UNSPEC;
	}
	taken = take_off_tunnel(ctx, p, &eth, tos, base);
	if (taken != MISS)
		return taken;
	if (!e)
		return reply(ctx, p, f);
	if (renamed && translate(ctx, p, f))
		return drop(ctx, R_DROP_ERROR);
	return deliver(ctx, p, e);
}

/* VXLAN to this host, header plain: outer IP without options and not a fragment. MISS: it is something else. */
NOINLINE int from_tunnel(struct __sk_buff *ctx, __u32 generation)
{
	struct config *cfg = settings();
	outer_ip_t ip;
	struct {
		__be16 sport, dport, length, sum;
	} udp;
	struct {
		__be32 flags, vni;
	} vxlan;

	if (!cfg || ctx->protocol != bpf_htons(ETH_OUTER) || bpf_skb_load_bytes(ctx, ETH_LEN, &ip, sizeof(ip)) ||
	    !is_plain_outer(&ip) || !same_host(ip.daddr, own_host(cfg)) || length_of_outer(&ip) + ETH_LEN > ctx->len ||
	    bpf_skb_load_bytes(ctx, ETH_LEN + OUTER_HEAD, &udp, sizeof(udp)) || udp.dport != cfg->vxlan_port)
		return MISS;
	if (bpf_skb_load_bytes(ctx, ETH_LEN + OUTER_HEAD + 8, &vxlan, sizeof(vxlan)))
		return drop(ctx, R_DROP_GARBAGE);
	if (!(vxlan.flags & bpf_htonl(VXLAN_HAS_VNI)))
		return drop(ctx, R_DROP_GARBAGE);
#ifndef OVERLACE_IPV6
	if (bpf_ntohl(vxlan.vni) >> 8 == PROBE_VNI)
		return probe_from_tunnel(ctx, &ip.saddr);
#endif
	return inbound(ctx, bpf_ntohl(vxlan.vni) >> 8, &ip.saddr, tos_of_outer(&ip), VXLAN_PUSH, generation);
}

#ifndef OVERLACE_IPV6
/* All of from_underlay for a packet outside the tunnel that no unified flow took. */
NOINLINE int walk_from_underlay(struct __sk_buff *ctx, __u32 generation)
{
	struct config *cfg = settings();
	struct pkt p = {};

	if (!cfg || ctx->protocol != bpf_htons(ETH_IPV4) || parse(ctx, ETH_LEN, 0, &p))
		return TC_ACT_UNSPEC;
	if ((p.daddr & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000))
		return TC_ACT_UNSPEC; /* a port of 127.0.0.1 is published to this host alone */
	if (!IS_OVER_IPV6 && p.proto == PROTO_UDP && p.daddr == cfg->underlay_addr && p.dport == cfg->vxlan_port && !p.later)
		return TC_ACT_UNSPEC; /* the kernel reassembles; from_vxlan sees the result */

	struct question q = { .source = p.saddr, .out = OUT_UNDERLAY, .ifindex = ctx->ifindex };

	if (!find_published(&p, &q.front) && !p.error)
		return TC_ACT_UNSPEC;

	p.origin = FROM_UNDERLAY;
	p.complain = p.daddr;
	came(&p, ctx->ifindex, generation);
	return balanced(ctx, &p, &q);
}

#endif

SEC("tc")
int from_underlay(struct __sk_buff *ctx)
{
	__u32 generation = current_generation();
	int taken;

	begin(ctx);
	taken = again_from_underlay(ctx, generation);
	if (taken == MISS)
		taken = from_tunnel(ctx, generation);
#ifdef OVERLACE_IPV6
	return taken == MISS ? TC_ACT_UNSPEC : taken;
#else
	if (taken == MISS && ctx->protocol == bpf_htons(ETH_IPV6))
		return six_outside(ctx);
	if (taken == MISS)
		taken = again(ctx, generation);
	if (taken == MISS)
		taken = walk_from_underlay(ctx, generation);
	return taken == OTHER_FAMILY ? six(ctx, SIX_UNDERLAY) : taken;
#endif
}

#ifndef OVERLACE_IPV6
SEC("tc")
int from_edge(struct __sk_buff *ctx)
{
	__u32 generation;
	int taken;

	if (ctx->protocol == bpf_htons(ETH_IPV6))
		return six_outside(ctx);
	generation = current_generation();
	taken = again(ctx, generation);
	return taken == MISS ? walk_from_underlay(ctx, generation) : taken;
}
#endif

SEC("tc")
int from_vxlan(struct __sk_buff *ctx)
{
	host_t provider;
	__u32 vni;

	begin(ctx);
	if (get_tunnel(ctx, &vni, &provider))
		return drop(ctx, R_DROP_GARBAGE);
#ifdef OVERLACE_IPV6
	return inbound(ctx, vni, &provider, 0, 0, 0);
}
#else
	if (vni == PROBE_VNI)
		return probe_from_vxlan(ctx, &provider);

	int taken = inbound(ctx, vni, &provider, 0, 0, 0);

	return taken == OTHER_FAMILY ? six(ctx, SIX_VXLAN) : taken;
}

NOINLINE int walk_from_host(struct __sk_buff *ctx, __u32 generation)
{
	struct config *cfg = settings();
	struct question q = { .out = OUT_HOST };
	const __be32 net = bpf_htonl(0xff000000), loopback = bpf_htonl(0x7f000000);
	struct pkt p = {};

	if (!cfg || ctx->protocol != bpf_htons(ETH_IPV4) || parse(ctx, ETH_LEN, 0, &p))
		return TC_ACT_UNSPEC;
	if (p.proto == PROTO_UDP && p.dport == cfg->vxlan_port && p.daddr == loopback + bpf_htonl(1))
		return probe_out(ctx, &p);
	q.source = (p.saddr & net) == loopback ? cfg->underlay_addr : p.saddr;
	if (!find_published(&p, &q.front) && !p.error &&
	    ((p.daddr & net) != loopback || !frontend_of(0, &q.front, p.dport, p.proto)))
		return TC_ACT_UNSPEC;
	p.origin = FROM_HOST;
	p.complain = p.daddr;
	came(&p, ctx->ifindex, generation);
	return balanced(ctx, &p, &q);
}

SEC("tc")
int from_host(struct __sk_buff *ctx)
{
	if (ctx->protocol == bpf_htons(ETH_IPV6))
		return six_outside(ctx);

	__u32 generation = current_generation();
	int taken;

	begin(ctx);
	taken = again(ctx, generation);
	return taken == MISS ? walk_from_host(ctx, generation) : taken;
}
#endif

#ifdef OVERLACE_IPV6
SEC("tc")
int from_outside(struct __sk_buff *ctx)
{
	__u32 generation = current_generation();
	int taken;

	begin(ctx);
	taken = again(ctx, generation);
	return taken == MISS ? walk_from_outside(ctx, generation) : taken;
}
#endif
