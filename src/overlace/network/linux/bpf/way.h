/* SPDX-License-Identifier: Apache-2.0 */
/* Unified flows: the way the layers found for a connection, remembered and taken again, and the last step of every way.
 * What is remembered is never an answer of this program nor a drop: those are decided each time. */
#pragma once
#include "access.h"
#include "path.h"
#include "qos.h"

/* What a quick look at a packet found; its headers are linear. */
struct seen {
	__u32 point, generation;
	struct pkt p;
	__u8 own[6];
	__u8 other_family;
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

/* The packet, as it is now, goes this way, and so do those that come like it. `target`: ifindex of W_DELIVER. */
NOINLINE int remember(const struct pkt *p, __u32 verdict, __u32 target, const struct hop *hop)
{
	struct scratch *s = scratch();
	struct way *w, *old;

	if (!p || !s || !p->generation)
		return 0;
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

/* The unified flow of the packet behind `base` bytes, if it has one that still holds. What begins a TCP connection is
 * for the layers to see, and what ends one that a service has or that came through another host. */
INLINE struct way *way_of(struct __sk_buff *ctx, const __u32 base, struct seen *s)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct eth *eth = data + base;
	head_t *ip = data + base + ETH_LEN;
	struct tcp *tcp = data + base + ETH_LEN + IP_HEAD;
	struct way_key key = {};
	struct way *w;
	__u32 length;
	__u8 ends = 0, proto;

	if (!s->generation || (void *)tcp + 8 > end)
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
	s->p.l4_len = 8;
	proto = proto_of(ip);
	if (proto == PROTO_TCP) {
		if ((void *)tcp + sizeof(*tcp) > end || (tcp->flags & TCP_SYN))
			return 0;
		ends = tcp->flags & (TCP_FIN | TCP_RST);
		s->p.l4_len = (tcp->offset >> 4) * 4;
	} else if (proto != PROTO_UDP) {
		return 0;
	}
	key.point = s->point;
	key.saddr = ip->saddr;
	key.daddr = ip->daddr;
	key.sport = tcp->sport;
	key.dport = tcp->dport;
	key.proto = proto;
	w = bpf_map_lookup_elem(&ways, &key);
	if (w && ends)
		w->flags |= ends;
	if (!w || w->generation != s->generation ||
	    (ends && ((w->flags & W_NOTED) || renames(w, &key) || is_counted(w))))
		return 0;

	__u32 at = now();

	if (at - w->decided >= WAY_AGE)
		return 0;
	if (w->seen != at)
		w->seen = at;
	w->packets += 1; /* exact while one processor at a time sees the flow */
	w->bytes += length;
	s->p.saddr = key.saddr;
	s->p.daddr = key.daddr;
	s->p.sport = key.sport;
	s->p.dport = key.dport;
	s->p.proto = key.proto;
	s->p.l3 = base + ETH_LEN;
	s->p.l4 = base + ETH_LEN + IP_HEAD;
	s->p.length = length;
	s->p.ihl = IP_HEAD;
	s->p.tos = tos_of(ip);
	s->p.df = is_whole(ip);
	copy_mac(s->own, eth->src);
	return w;
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
	s->point = AT_TUNNEL | bpf_ntohl(udp->vni) >> 8;
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
	struct way_key came = { .saddr = s->p.saddr, .daddr = s->p.daddr, .sport = s->p.sport, .dport = s->p.dport };
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
	if (renames(w, &came) && translate(ctx, &s->p, as))
		return drop(ctx, R_DROP_ERROR);
	if (verdict == W_ENCAPSULATE)
		return encapsulate(ctx, &s->p, &hop, 0);
	if (verdict == W_DELIVER) {
		if (!tunnelled)
			return into_container(ctx, ifindex, hop.dst);
		copy_mac(eth.dst, hop.dst);
		copy_mac(eth.src, s->own);
		if (bpf_skb_store_bytes(ctx, 0, &eth, sizeof(eth), 0))
			return drop(ctx, R_DROP_ERROR);
		bpf_skb_change_type(ctx, HOST_PACKET);
		return end(ctx, R_DELIVERED, bpf_redirect_peer(ifindex, 0));
	}
	if (verdict == W_UNDERLAY)
		return to_client(ctx, cfg, as->daddr);
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

	s->point = ctx->ifindex;
	s->generation = generation;
	w = way_of(ctx, 0, s);
	if (!w || !fits(ctx, s, w))
		return MISS;
	return go(ctx, s, w, 0);
}

/* The same for a container's packet, which must bear the container's MAC. */
NOINLINE int again_from_container(struct __sk_buff *ctx, __u32 generation)
{
	struct way *w;
	QUICK_ROOM(seen, s);

	s->point = ctx->ifindex;
	s->generation = generation;
	w = way_of(ctx, 0, s);
	if (s->other_family)
		return OTHER_FAMILY;
	if (!w || !same_mac(s->own, w->own) || !fits(ctx, s, w))
		return MISS;
	if ((w->flags & W_METERED) && over_limit(ctx))
		return drop(ctx, R_DROP_RATE);
	return go(ctx, s, w, 0);
}

/* The same for a packet in the tunnel. */
NOINLINE int again_from_underlay(struct __sk_buff *ctx, __u32 generation)
{
	struct config *cfg = settings();
	host_t provider;
	struct way *w;
	__u8 tos;
	QUICK_ROOM(seen, s);

	s->generation = generation;
	if (!cfg || !plain_tunnel(ctx, cfg, s, &provider, &tos))
		return MISS;
	w = way_of(ctx, VXLAN_PUSH, s);
	if (s->other_family)
		return OTHER_FAMILY;
	/* a merged frame that leaves again goes through the kernel, see inbound() */
	if (!w || !same_host(w->from, provider) || (w->verdict != W_DELIVER && ctx->gso_size) || !fits(ctx, s, w))
		return MISS;
	if (pop_tunnel(ctx, tos))
		return MISS;
	s->p.l3 -= VXLAN_PUSH;
	s->p.l4 -= VXLAN_PUSH;
	return go(ctx, s, w, 1);
}
