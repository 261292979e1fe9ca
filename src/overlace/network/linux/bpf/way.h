/* SPDX-License-Identifier: Apache-2.0 */
/* Unified flows: the way the layers found for a connection, remembered and taken again, and the last step of every way.
 * What is remembered is never an answer of this program nor a drop: those are decided each time. */
#pragma once
#include "access.h"
#include "path.h"
#include "plain.h"
#include "qos.h"

/* What a quick look at a packet found; its headers are linear. */
struct seen {
	struct pkt p; /* p.came.proto: 0 when it is none that may have a unified flow */
	__u8 other_family, closed;
	__u32 place, name; /* as a newcomer */
	__u32 began;
	__u64 packets, bytes; /* what its flow carried, when that is to be decided anew */
};

QUICK_ROOM_FOR(seen, s);

INLINE __u32 current_generation(void)
{
	__u32 zero = 0, *n = bpf_map_lookup_elem(&generation, &zero);

	return n ? *n : 0;
}

/* Note how the packet came, before anything is rewritten. */
INLINE void came(struct pkt *p, __u32 point, __u32 generation)
{
	struct scratch *s = scratch();
	int often = (p->proto == PROTO_TCP && !(p->tcp_flags & (TCP_FIN | TCP_RST))) || p->proto == PROTO_UDP;

	if (s) {
		s->judged[GOES_IN].rule = 0;
		s->judged[GOES_OUT].rule = 0;
	}
	p->generation = often && !p->fragment && p->ihl == IP_HEAD ? generation : 0;
	p->came.point = point;
	p->came.saddr = p->saddr;
	p->came.daddr = p->daddr;
	p->came.sport = p->sport;
	p->came.dport = p->dport;
	p->came.proto = p->proto;
	__builtin_memset(p->came.pad, 0, sizeof(p->came.pad));
}

/* What resets a connection is no flow of its own: the flow it answers is told. The packet is as it goes on, this way. */
NOINLINE int note_reset(const struct pkt *p, __u32 verdict, __u32 target, __u32 vni)
{
	struct config *cfg = settings();
	struct way_key asked = {};
	struct way *w;

	if (!p || !cfg || p->proto != PROTO_TCP || !(p->tcp_flags & TCP_RST))
		return 0;
	if (verdict == W_DELIVER)
		asked.point = target;
	else if (verdict == W_ENCAPSULATE)
		asked.point = AT_TUNNEL | vni;
	else if (verdict == W_LOOPBACK)
		asked.point = cfg->lo_ifindex;
	else if (verdict == W_UNDERLAY)
		asked.point = target ? target : cfg->underlay_ifindex;
	else
		return 0;
	asked.saddr = p->daddr;
	asked.daddr = p->saddr;
	asked.sport = p->dport;
	asked.dport = p->sport;
	asked.proto = PROTO_TCP;
	w = bpf_map_lookup_elem(&ways, &asked);
	if (w)
		w->flags |= TCP_RST;
	return 0;
}

/* The packet, as it is now, goes this way, and so do those that come like it. `target`: ifindex of W_DELIVER and W_UNDERLAY. */
NOINLINE int remember(const struct pkt *p, __u32 verdict, __u32 target, const struct hop *hop)
{
	struct scratch *s = scratch();
	struct way *w, *old;

	if (!p || !s)
		return 0;
	if (!p->generation)
		return note_reset(p, verdict, target, hop ? hop->vni : 0);
	w = &s->way;
	__builtin_memset(w, 0, sizeof(*w));
	w->generation = p->generation;
	w->decided = w->seen = w->began = now();
	w->saddr = p->saddr;
	w->daddr = p->daddr;
	w->sport = p->sport;
	w->dport = p->dport;
	w->from = p->from;
	w->ifindex = target;
	w->verdict = verdict;
	w->flags = (p->metered ? W_METERED : 0) | (p->noted ? W_NOTED : 0);
	copy_mac(w->own, p->own);
	if (hop) {
		w->provider = hop->provider;
		w->vni = hop->vni;
		copy_mac(w->src, hop->src);
		copy_mac(w->dst, hop->dst);
	}
	w->judged[GOES_IN] = s->judged[GOES_IN];
	w->judged[GOES_OUT] = s->judged[GOES_OUT];
	w->packets = 1;
	w->bytes = p->length;
	old = bpf_map_lookup_elem(&ways, &p->came);
	if (old) {
		w->packets += old->packets;
		w->bytes += old->bytes;
		if (p->proto != PROTO_TCP || !(p->tcp_flags & TCP_SYN)) {
			w->began = old->began;
			w->flags |= old->flags & (TCP_FIN | TCP_RST);
		}
	}
	for (int i = GOES_IN; i <= GOES_OUT; i++) {
		w->judged[i].packets = w->packets;
		w->judged[i].bytes = w->bytes;
	}
	bpf_map_update_elem(&ways, &p->came, w, BPF_ANY);
	return 0;
}

/* The first packets of a TCP connection that plain.h takes are counted here while nobody looks at flows: most connections
 * are over soon, and to remember one costs as much as two of its packets. */
INLINE int is_newcomer(struct seen *s)
{
	const struct way_key *came = &s->p.came;
	__u64 hash = ((__u64)digest(came->saddr) << 32 | digest(came->daddr)) * 0x9e3779b97f4a7c15ull;
	struct newcomer *n;

	hash ^= hash >> 32 ^ (__u64)came->point << 32 ^ ((__u32)came->sport << 16 | came->dport);
	hash *= 0x9e3779b97f4a7c15ull;
	s->place = hash >> 53;
	s->name = hash >> 20 & ~15u;
	n = bpf_map_lookup_elem(&newcomers, &s->place);
	return n && n->name > s->name && (n->name & ~15u) == s->name;
}

/* Whether the connection is to stay one for now. Else `s` has what it carried so far. */
INLINE int stays_newcomer(struct seen *s)
{
	struct newcomer *n = bpf_map_lookup_elem(&newcomers, &s->place);
	__u32 zero = 0, *until = bpf_map_lookup_elem(&watched, &zero);

	if (!n)
		return 0;
	if ((n->name & ~15u) != s->name) {
		n->name = s->name;
		n->bytes = 0;
		n->began = now();
	}
	if ((n->name & 15) < BRIEF && !(until && *until && now() < *until)) {
		n->name += 1;
		n->bytes += s->p.length;
		return 1;
	}
	s->packets = n->name & 15;
	s->bytes = n->bytes;
	s->began = n->began;
	n->name = 0;
	return 0;
}

/* Its packets are the layers' from now on. */
INLINE int leave_to_layers(struct seen *s)
{
	struct newcomer *n = bpf_map_lookup_elem(&newcomers, &s->place);

	if (n && (n->name & ~15u) == s->name)
		n->name = 0;
	return MISS;
}

/* Remember scratch()->way, which plain.h found. */
INLINE void keep(struct seen *s, struct scratch *room)
{
	struct way *w = &room->way;

	if (s->p.tcp_flags & (TCP_FIN | TCP_RST)) {
		if (s->p.tcp_flags & TCP_RST)
			note_reset(&s->p, w->verdict, w->ifindex, w->vni);
		return;
	}
	if (s->p.proto == PROTO_TCP && !s->packets && stays_newcomer(s))
		return;
	w->generation = s->p.generation;
	w->decided = w->seen = now();
	w->began = s->packets ? s->began : w->decided;
	w->from = s->p.from;
	copy_mac(w->own, s->p.own);
	w->flags = s->closed;
	w->tick = 0;
	w->packets = s->packets + 1;
	w->bytes = s->bytes + s->p.length;
	__builtin_memset(w->judged, 0, sizeof(w->judged));
	bpf_map_update_elem(&ways, &s->p.came, w, BPF_ANY);
}

INLINE void forget(__u32 point, addr_t saddr, addr_t daddr, __be16 sport, __be16 dport, __u8 proto)
{
	struct way_key key = {
		.point = point, .saddr = saddr, .daddr = daddr, .sport = sport, .dport = dport, .proto = proto,
	};

	bpf_map_delete_elem(&ways, &key);
}

INLINE int renames(const struct way *w, const struct way_key *came)
{
	return !same(w->saddr, came->saddr) || !same(w->daddr, came->daddr) || w->sport != came->sport || w->dport != came->dport;
}

/* Whether rules are still to count packets of the flow. */
INLINE int is_counted(const struct way *w)
{
	return w->judged[GOES_IN].rule || w->judged[GOES_OUT].rule;
}

/* Whether what was decided may still be used. The clock is looked at once a tick: that costs as much as finding the flow. */
INLINE int is_fresh(struct way *w)
{
	__u32 tick = bpf_jiffies64(), at;

	if (w->tick == tick)
		return 1;
	at = now();
	if (at - w->decided >= WAY_AGE)
		return 0;
	w->seen = at;
	w->tick = tick;
	return 1;
}

/* The unified flow of the packet behind `base` bytes, if it has one that still holds. What begins a TCP connection is
 * for the layers to see, and what ends one that a service has or that came through another host. */
INLINE struct way *way_of(struct __sk_buff *ctx, const __u32 base, struct seen *s)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct eth *eth = data + base;
	head_t *ip = data + base + ETH_LEN;
	struct tcp *tcp = data + base + ETH_LEN + IP_HEAD;
	struct pkt *p = &s->p;
	__u32 length, ends = 0;
	struct way *w;
	__u8 proto;

	if (!p->generation || (void *)tcp + 8 > end)
		return 0;
	if (eth->proto != bpf_htons(ETH_INNER)) {
		s->other_family = eth->proto == bpf_htons(ETH_IPV6);
		return 0;
	}
	if (!is_plain(ip))
		return 0;
	length = length_of(ip);
	if (length < IP_HEAD + 8 || length > 0xffff || base + ETH_LEN + length > ctx->len)
		return 0;
	p->l4_len = 8;
	proto = proto_of(ip);
	if (proto == PROTO_TCP) {
		if ((void *)tcp + sizeof(*tcp) > end)
			return 0;
		p->tcp_flags = tcp->flags;
		ends = tcp->flags & (TCP_FIN | TCP_RST);
		p->l4_len = (tcp->offset >> 4) * 4;
	} else if (proto != PROTO_UDP) {
		return 0;
	}
	p->saddr = p->came.saddr = ip->saddr;
	p->daddr = p->came.daddr = ip->daddr;
	p->sport = p->came.sport = tcp->sport;
	p->dport = p->came.dport = tcp->dport;
	p->proto = p->came.proto = proto;
	p->l3 = base + ETH_LEN;
	p->l4 = base + ETH_LEN + IP_HEAD;
	p->length = length;
	p->ihl = IP_HEAD;
	p->tos = tos_of(ip);
	p->df = is_whole(ip);
	copy_mac(p->own, eth->src);
	if (proto == PROTO_TCP && is_newcomer(s))
		return 0;
	w = bpf_map_lookup_elem(&ways, &p->came);
	if (!w)
		return 0;
	if (ends)
		w->flags |= ends;
	if (w->generation == p->generation && !(p->tcp_flags & TCP_SYN) &&
	    !(ends && ((w->flags & W_NOTED) || renames(w, &p->came) || is_counted(w))) && is_fresh(w)) {
		w->packets += 1; /* exact while one processor at a time sees the flow */
		w->bytes += length;
		return w;
	}
	s->packets = w->packets;
	s->bytes = w->bytes;
	s->began = p->tcp_flags & TCP_SYN ? now() : w->began;
	s->closed = p->tcp_flags & TCP_SYN ? 0 : w->flags & (TCP_FIN | TCP_RST);
	return 0;
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
	    !same_host(ip->daddr, own_host(cfg)) || !(udp->flags & bpf_htonl(0x08000000)))
		return 0;
	s->p.came.point = AT_TUNNEL | bpf_ntohl(udp->vni) >> 8;
	*provider = ip->saddr;
	*tos = tos_of_outer(ip);
	return 1;
}

/* BPF_F_ADJ_ROOM_DECAP_L3_IPV6 and _IPV4, Linux 6.3 */
#define INNER_PROTOCOL (IS_IPV6 ? 1ULL << 8 : IS_OVER_IPV6 ? 1ULL << 7 : 0)
#define MAY_NOT_POP (IS_IPV6 || IS_OVER_IPV6) /* on kernels before that */

/* Take the tunnel's headers off. The Ethernet header is the outer one then. -1, the packet untouched: the kernel cannot,
 * its vxlan device must. */
INLINE int pop_tunnel(struct __sk_buff *ctx, __u8 tos)
{
	if (bpf_skb_adjust_room(ctx, -VXLAN_PUSH, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | INNER_PROTOCOL))
		return -1;
	if ((tos & 3) == 3) /* congestion seen on the underlay, RFC 6040 */
		bpf_skb_ecn_set_ce(ctx);
	return 0;
}

INLINE int to_loopback(struct __sk_buff *ctx, const struct config *cfg)
{
	struct eth eth = { .proto = bpf_htons(ETH_INNER) }; /* lo's own address is all zeros */

	if (bpf_skb_store_bytes(ctx, 0, &eth, sizeof(eth), 0))
		return drop(ctx, R_DROP_ERROR);
	return end(ctx, R_TO_HOST, bpf_redirect(cfg->lo_ifindex, BPF_F_INGRESS));
}

INLINE int to_host(struct __sk_buff *ctx)
{
	bpf_skb_change_type(ctx, HOST_PACKET);
	return end(ctx, R_TO_HOST, TC_ACT_UNSPEC);
}

INLINE int into_container(struct __sk_buff *ctx, __u32 ifindex, const __u8 *mac)
{
	if (bpf_skb_store_bytes(ctx, 0, mac, 6, 0))
		return drop(ctx, R_DROP_ERROR);
	bpf_skb_change_type(ctx, HOST_PACKET);
	return end(ctx, R_DELIVERED, bpf_redirect_peer(ifindex, 0));
}

/* Into the container of local endpoint `e`; the packet is as the container shall see it. */
INLINE int deliver(struct __sk_buff *ctx, const struct pkt *p, struct endpoint *e)
{
	__u32 ifindex = e->ifindex;
	struct hop hop = {};

	if (!ifindex)
		return drop(ctx, R_DROP_NO_ENDPOINT);
	if (e->flags & ENDPOINT_FILTERED) {
		struct port *port = bpf_map_lookup_elem(&ports, &ifindex);

		if (!port || ((port->flags & PORT_FILTERED) && !admitted(p, port, ifindex, GOES_IN)))
			return drop(ctx, R_DROP_POLICY);
	}
	copy_mac(hop.dst, e->mac);
	remember(p, W_DELIVER, ifindex, &hop);
	return into_container(ctx, ifindex, hop.dst);
}

/* Take the remembered way. `tunnelled`: the packet came out of one, and its Ethernet header is still the outer one. */
INLINE int go(struct __sk_buff *ctx, struct seen *s, const struct way *w, const int tunnelled)
{
	struct config *cfg = settings();
	struct eth eth = { .proto = bpf_htons(ETH_INNER) };
	struct hop hop = { .vni = w->vni, .provider = w->provider };
	__u32 ifindex = w->ifindex;
	__u8 verdict = w->verdict;
	QUICK_ROOM(flow, as);

	as->saddr = w->saddr;
	as->daddr = w->daddr;
	as->sport = w->sport;
	as->dport = w->dport;
	if (!cfg)
		return drop(ctx, R_DROP_ERROR);
	copy_mac(hop.src, w->src);
	copy_mac(hop.dst, w->dst);
	if (renames(w, &s->p.came) && translate(ctx, &s->p, as))
		return drop(ctx, R_DROP_ERROR);
	if (verdict == W_ENCAPSULATE)
		return encapsulate(ctx, &s->p, &hop, 0);
	if (verdict == W_DELIVER) {
		if (!tunnelled)
			return into_container(ctx, ifindex, hop.dst);
		copy_mac(eth.dst, hop.dst);
		copy_mac(eth.src, s->p.own);
		if (bpf_skb_store_bytes(ctx, 0, &eth, sizeof(eth), 0))
			return drop(ctx, R_DROP_ERROR);
		bpf_skb_change_type(ctx, HOST_PACKET);
		return end(ctx, R_DELIVERED, bpf_redirect_peer(ifindex, 0));
	}
	if (verdict == W_UNDERLAY)
		return to_client(ctx, cfg, ifindex, as->daddr);
	if (verdict == W_LOOPBACK)
		return to_loopback(ctx, cfg);
	return to_host(ctx);
}

/* Whether the way can take this very packet: one that is too big is answered by the layers. */
INLINE int fits(struct __sk_buff *ctx, const struct seen *s, const struct way *w)
{
	struct config *cfg = settings();

	return cfg && (w->verdict != W_ENCAPSULATE || !too_big(ctx, path_mtu(cfg, w->provider), &s->p));
}

/* A packet that came by an interface, as it is: its end, or MISS. */
NOINLINE int again(struct __sk_buff *ctx, __u32 generation)
{
	struct way *w;
	QUICK_ROOM(seen, s);

	s->p.came.point = ctx->ifindex;
	s->p.generation = generation;
	w = way_of(ctx, 0, s);
	if (!w || !fits(ctx, s, w))
		return MISS;
	return go(ctx, s, w, 0);
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
	struct way *w;
	QUICK_ROOM(seen, s);

	s->p.came.point = ctx->ifindex;
	s->p.generation = generation;
	w = way_of(ctx, 0, s);
	if (s->other_family)
		return OTHER_FAMILY;
	if (w) {
		if (!same_mac(s->p.own, w->own) || !fits(ctx, s, w))
			return MISS;
		if ((w->flags & W_METERED) && over_limit(ctx))
			return too_much(ctx);
		return go(ctx, s, w, 0);
	}
	if (!s->p.came.proto || !room || !plain_from_container(ctx, &s->p) || !fits(ctx, s, &room->way))
		return leave_to_layers(s);
	keep(s, room);
	return go(ctx, s, &room->way, 0);
}

/* The same for a packet in the tunnel. */
NOINLINE int again_from_underlay(struct __sk_buff *ctx, __u32 generation)
{
	struct config *cfg = settings();
	struct scratch *room = scratch();
	struct way *w;
	__u8 tos, is_known;
	QUICK_ROOM(seen, s);

	s->p.generation = generation;
	if (!cfg || !plain_tunnel(ctx, cfg, s, &s->p.from, &tos))
		return MISS;
	w = way_of(ctx, VXLAN_PUSH, s);
	if (s->other_family)
		return OTHER_FAMILY;
	is_known = w != 0;
	if (w) {
		/* a merged frame that leaves again goes through the kernel, see inbound() */
		if (!same_host(w->from, s->p.from) || (w->verdict != W_DELIVER && ctx->gso_size) || !fits(ctx, s, w))
			return MISS;
	} else {
		if (!s->p.came.proto || !room || !plain_from_tunnel(&s->p))
			return leave_to_layers(s);
		w = &room->way;
	}
	if (pop_tunnel(ctx, tos))
		return MISS;
	if (!is_known)
		keep(s, room);
	s->p.l3 -= VXLAN_PUSH;
	s->p.l4 -= VXLAN_PUSH;
	return go(ctx, s, w, 1);
}
