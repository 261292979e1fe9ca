/* SPDX-License-Identifier: Apache-2.0 */
/* Unified flows: what the layers made of a connection's packet, remembered by how the packet came, and found again for the
 * later ones. No answer of these programs nor a drop is ever remembered: those are decided each time. */
#pragma once
#include "access.h"
#include "newcomer.h"

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
	struct unified_key asked = {};
	struct unified_flow *u;

	if (!p || !cfg || p->proto != PROTO_TCP || !(p->tcp_flags & TCP_RST))
		return 0;
	if (verdict == U_DELIVER)
		asked.point = target;
	else if (verdict == U_ENCAPSULATE)
		asked.point = AT_TUNNEL | vni;
	else if (verdict == U_LOOPBACK)
		asked.point = cfg->lo_ifindex;
	else if (verdict == U_UNDERLAY)
		asked.point = target ? target : cfg->underlay_ifindex;
	else
		return 0;
	asked.saddr = p->daddr;
	asked.daddr = p->saddr;
	asked.sport = p->dport;
	asked.dport = p->sport;
	asked.proto = PROTO_TCP;
	u = bpf_map_lookup_elem(&unified_flows, &asked);
	if (u)
		u->flags |= TCP_RST;
	return 0;
}

/* The packet, as it is now, goes this way, and so do those that come like it. `target`: ifindex of U_DELIVER and U_UNDERLAY. */
NOINLINE int remember(const struct pkt *p, __u32 verdict, __u32 target, const struct hop *hop)
{
	struct scratch *s = scratch();
	struct unified_flow *u, *old;

	if (!p || !s)
		return 0;
	if (!p->generation)
		return note_reset(p, verdict, target, hop ? hop->vni : 0);
	u = &s->unified;
	__builtin_memset(u, 0, sizeof(*u));
	u->generation = p->generation;
	u->decided = u->seen = u->began = now();
	u->saddr = p->saddr;
	u->daddr = p->daddr;
	u->sport = p->sport;
	u->dport = p->dport;
	u->from = p->from;
	u->ifindex = target;
	u->verdict = verdict;
	u->flags = (p->metered ? U_METERED : 0) | (p->noted ? U_NOTED : 0);
	copy_mac(u->own, p->own);
	if (hop) {
		u->provider = hop->provider;
		u->vni = hop->vni;
		copy_mac(u->src, hop->src);
		copy_mac(u->dst, hop->dst);
	}
	u->judged[GOES_IN] = s->judged[GOES_IN];
	u->judged[GOES_OUT] = s->judged[GOES_OUT];
	u->packets = 1;
	u->bytes = p->length;
	old = bpf_map_lookup_elem(&unified_flows, &p->came);
	if (old) {
		u->packets += old->packets;
		u->bytes += old->bytes;
		if (p->proto != PROTO_TCP || !(p->tcp_flags & TCP_SYN)) {
			u->began = old->began;
			u->flags |= old->flags & (TCP_FIN | TCP_RST);
		}
	}
	for (int i = GOES_IN; i <= GOES_OUT; i++) {
		u->judged[i].packets = u->packets;
		u->judged[i].bytes = u->bytes;
	}
	bpf_map_update_elem(&unified_flows, &p->came, u, BPF_ANY);
	return 0;
}

INLINE void forget(__u32 point, addr_t saddr, addr_t daddr, __be16 sport, __be16 dport, __u8 proto)
{
	struct unified_key key = {
		.point = point, .saddr = saddr, .daddr = daddr, .sport = sport, .dport = dport, .proto = proto,
	};

	bpf_map_delete_elem(&unified_flows, &key);
}

INLINE int renames(const struct unified_flow *u, const struct unified_key *came)
{
	return !same(u->saddr, came->saddr) || !same(u->daddr, came->daddr) || u->sport != came->sport || u->dport != came->dport;
}

/* Whether rules are still to count packets of the flow. */
INLINE int is_counted(const struct unified_flow *u)
{
	return u->judged[GOES_IN].rule || u->judged[GOES_OUT].rule;
}

/* Whether what was decided may still be used. The clock is looked at once a tick: that costs as much as finding the flow. */
INLINE int is_fresh(struct unified_flow *u)
{
	__u32 tick = bpf_jiffies64(), at;

	if (u->tick == tick)
		return 1;
	at = now();
	if (at - u->decided >= UNIFIED_AGE)
		return 0;
	u->seen = at;
	u->tick = tick;
	return 1;
}

/* The unified flow of the packet behind `base` bytes, if it has one that still holds. What begins a TCP connection is
 * for the layers to see, and what ends one that a service has or that came through another host. */
INLINE struct unified_flow *unified_flow_of(struct __sk_buff *ctx, const __u32 base, struct seen *s)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct eth *eth = data + base;
	head_t *ip = data + base + ETH_LEN;
	struct tcp *tcp = data + base + ETH_LEN + IP_HEAD;
	struct pkt *p = &s->p;
	__u32 length, ends = 0;
	struct unified_flow *u;
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
	u = bpf_map_lookup_elem(&unified_flows, &p->came);
	if (!u)
		return 0;
	if (ends)
		u->flags |= ends;
	if (u->generation == p->generation && !(p->tcp_flags & TCP_SYN) &&
	    !(ends && ((u->flags & U_NOTED) || renames(u, &p->came) || is_counted(u))) && is_fresh(u)) {
		u->packets += 1; /* exact while one processor at a time sees the flow */
		u->bytes += length;
		return u;
	}
	s->packets = u->packets;
	s->bytes = u->bytes;
	s->began = p->tcp_flags & TCP_SYN ? now() : u->began;
	s->closed = p->tcp_flags & TCP_SYN ? 0 : u->flags & (TCP_FIN | TCP_RST);
	return 0;
}
