/* SPDX-License-Identifier: Apache-2.0 */
/* Reading, rewriting and sending packets. Knows headers, not policy. */
#pragma once
#include "maps.h"

struct eth {
	__u8 dst[6], src[6];
	__be16 proto;
} __attribute__((packed, aligned(2)));

struct ip {
	__u8 version_ihl, tos;
	__be16 length, id, frag;
	__u8 ttl, proto;
	__u16 sum;
	__be32 saddr, daddr;
};

struct ip6 {
	__be32 first; /* version 4 bits, traffic class 8, flow label 20 */
	__be16 payload;
	__u8 next, hops;
	six_t saddr, daddr;
};

struct tcp {
	__be16 sport, dport;
	__be32 seq, ack;
	__u8 offset, flags;
	__be16 window;
	__u16 sum;
	__be16 urgent;
};

INLINE int same_mac(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const __u16 *)a, *y = (const __u16 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

INLINE void copy_mac(__u8 *to, const __u8 *from)
{
	__u16 *x = (__u16 *)to;
	const __u16 *y = (const __u16 *)from;

	x[0] = y[0];
	x[1] = y[1];
	x[2] = y[2];
}

INLINE __u16 fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

INLINE void seal_ip(struct ip *ip)
{
	const __u16 *half = (const __u16 *)ip;
	__u32 sum = 0;

	ip->sum = 0;
	for (int i = 0; i < IP_LEN / 2; i++)
		sum += half[i];
	ip->sum = fold(sum);
}

/* The frame goes out of the underlay to the IPv4 address; the kernel finds the next hop's MAC, asking for it when it must. */
INLINE int to_neighbour(const struct config *cfg, __be32 to)
{
	struct bpf_redir_neigh next = { .nh_family = FAMILY_INET, .ipv4_nh = to };

	if (((to ^ cfg->underlay_addr) & cfg->underlay_mask) == 0)
		return bpf_redirect_neigh(cfg->underlay_ifindex, &next, sizeof(next), 0);
	return bpf_redirect_neigh(cfg->underlay_ifindex, 0, 0, 0);
}

#ifdef OVERLACE_OVER_IPV6
#include "tunnel6.h"
#else
#include "tunnel4.h"
#endif

struct outer { /* what is pushed between the outer MAC and the inner IP header, RFC 7348 section 5 */
	outer_ip_t ip;
	__be16 sport, dport, udp_len, udp_sum;
	__be32 flags, vni;
	struct eth eth;
} __attribute__((packed, aligned(2)));

OUTER_ROOM_FOR;

#ifdef OVERLACE_IPV6
typedef __be32 frag_id_t;
#include "packet6.h"
#else
typedef __be16 frag_id_t;
#include "packet4.h"
#endif

QUICK_ROOM_FOR(flow, as);

/* Whether the packet asks for a new TCP connection. */
INLINE int begins_connection(const struct pkt *p)
{
	return p->proto == PROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

/* Read the packet at `l3`. Fragments after the first get their ports from the first one seen. 0 or a reason. */
INLINE int read_packet(struct __sk_buff *ctx, __u32 l3, __u32 scope, struct pkt *p, __u32 *mark)
{
	frag_id_t id = 0;
	int bad = read_head(ctx, l3, p, &id, mark);

	if (bad)
		return bad;
	p->sport = p->dport = 0;
	p->tcp_flags = p->l4_len = p->icmp_type = p->error = 0;
	if (p->proto != PROTO_TCP && p->proto != PROTO_UDP && p->proto != PROTO_ICMP && p->proto != PROTO_SCTP)
		return 0;
	if (!p->later && p->proto == PROTO_ICMP) {
		__u8 type;

		if (bpf_skb_load_bytes(ctx, p->l4, &type, 1))
			return R_DROP_GARBAGE;
		p->icmp_type = type;
		p->l4_len = 8;
		if (is_error(type))
			parse_error(ctx, p);
		return 0;
	}
	struct fragment_key key = { .scope = scope, .saddr = p->saddr, .daddr = p->daddr, .id = id, .proto = p->proto };

	if (p->later) {
		struct fragment *first = bpf_map_lookup_elem(&fragments, &key);

		if (first) {
			p->sport = first->sport;
			p->dport = first->dport;
		}
		return 0;
	}
	struct fragment two_ports;

	if (bpf_skb_load_bytes(ctx, p->l4, &two_ports, sizeof(two_ports)))
		return R_DROP_GARBAGE;
	p->sport = two_ports.sport;
	p->dport = two_ports.dport;
	p->l4_len = 8;
	if (p->proto == PROTO_TCP) {
		__u8 two[2];

		if (bpf_skb_load_bytes(ctx, p->l4 + 12, two, 2))
			return R_DROP_GARBAGE;
		p->l4_len = (two[0] >> 4) * 4;
		p->tcp_flags = two[1];
	}
	if (p->fragment)
		bpf_map_update_elem(&fragments, &key, &two_ports, BPF_ANY);
	return 0;
}

NOINLINE int parse(struct __sk_buff *ctx, __u32 l3, __u32 scope, struct pkt *p)
{
	__u32 mark = 0;
	int bad;

	if (!p)
		return R_DROP_ERROR;
	p->tos = 0;
	on_network(ctx, scope);
	bad = read_packet(ctx, l3, scope, p, &mark);
	if (p->tos == TRACE_TOS)
		trace_seen(ctx, mark, scope, p);
	return bad;
}

INLINE int set_port(struct __sk_buff *ctx, const struct pkt *p, __u32 at, __be16 from, __be16 to)
{
	__u64 flags = 2 | (p->proto == PROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0);

	if (from == to || p->later || (p->proto != PROTO_TCP && p->proto != PROTO_UDP))
		return 0;
	if (bpf_l4_csum_replace(ctx, sum_offset(p), from, to, flags))
		return -1;
	return bpf_skb_store_bytes(ctx, p->l4 + at, &to, 2, 0);
}

INLINE int set_quoted_port(struct __sk_buff *ctx, const struct pkt *p, __u32 at, __be16 from, __be16 to)
{
	if (from == to)
		return 0;
	if (bpf_l4_csum_replace(ctx, p->l4 + 2, from, to, 2))
		return -1;
	return bpf_skb_store_bytes(ctx, p->l4 + 8 + IP_HEAD + at, &to, 2, 0);
}

/* An ICMP error gets the addresses a packet of its connection would get; the packet it quotes those its receiver sent
 * (the transport checksum in the quote is left: nobody can check it on eight bytes). */
INLINE int translate_error(struct __sk_buff *ctx, struct pkt *p, const struct flow *f)
{
	addr_t source = same(p->saddr, p->error_saddr) ? f->saddr : p->saddr;

	if (set_quoted_addr(ctx, p, SOURCE_AT, p->error_daddr, f->daddr) ||
	    set_quoted_addr(ctx, p, TARGET_AT, p->error_saddr, f->saddr) ||
	    set_quoted_port(ctx, p, 0, p->dport, f->dport) || set_quoted_port(ctx, p, 2, p->sport, f->sport) ||
	    set_addr(ctx, p, SOURCE_AT, p->saddr, source) || set_addr(ctx, p, TARGET_AT, p->daddr, f->daddr))
		return -1;
	p->saddr = source;
	p->daddr = f->daddr;
	p->error_saddr = f->saddr;
	p->error_daddr = f->daddr;
	p->sport = f->sport;
	p->dport = f->dport;
	return 0;
}

/* Give the packet the flow's addresses and ports, checksums included. */
NOINLINE int translate(struct __sk_buff *ctx, struct pkt *p, const struct flow *f)
{
	if (!p || !f)
		return -1;
	if (p->error)
		return translate_error(ctx, p, f);
	if (set_addr(ctx, p, SOURCE_AT, p->saddr, f->saddr) || set_addr(ctx, p, TARGET_AT, p->daddr, f->daddr) ||
	    set_port(ctx, p, 0, p->sport, f->sport) || set_port(ctx, p, 2, p->dport, f->dport))
		return -1;
	p->saddr = f->saddr;
	p->daddr = f->daddr;
	p->sport = f->sport;
	p->dport = f->dport;
	return 0;
}

/* Bytes of the largest IP packet this frame becomes on the wire: a GSO frame counts by segment. */
INLINE __u32 wire_size(struct __sk_buff *ctx, const struct pkt *p)
{
	__u32 segment = ctx->gso_size;

	return segment ? segment + p->ihl + p->l4_len : p->length;
}

/* `mtu`: of the path to the host it goes to. */
INLINE int too_big(struct __sk_buff *ctx, __u32 mtu, const struct pkt *p)
{
	return wire_size(ctx, p) + VXLAN_PUSH > mtu;
}

/* Whether the outer packet may be sent in fragments. IPv6 counts on 1280 bytes everywhere: RFC 8200 section 5. */
INLINE int may_be_split(struct __sk_buff *ctx, const struct pkt *p)
{
#if IS_OVER_IPV6
	return 0; /* its sender alone fragments what goes over IPv6, and the kernel does not for tunnels */
#elif IS_IPV6
	return wire_size(ctx, p) <= IPV6_LEAST;
#else
	return !p->df;
#endif
}

/* The plain packet to a client outside, out of the interface; the kernel finds the next hop there. */
INLINE int to_client(struct __sk_buff *ctx, const struct config *cfg, __u32 ifindex, addr_t to)
{
#ifndef OVERLACE_IPV6
	if (!ifindex || ifindex == cfg->underlay_ifindex)
		return end(ctx, R_TO_UNDERLAY, to_neighbour(cfg, to));
#endif
	return end(ctx, R_TO_UNDERLAY, bpf_redirect_neigh(ifindex ? ifindex : cfg->underlay_ifindex, 0, 0, 0));
}

struct hop {
	__u32 vni;
	host_t provider;
	__u8 src[6], dst[6]; /* of the inner Ethernet header */
};

/* The kernel's own vxlan device: over IPv4 it can fragment the outer packet. */
NOINLINE int slow_path(struct __sk_buff *ctx, const struct hop *hop)
{
	struct config *cfg = settings();
	struct eth eth = { .proto = bpf_htons(ETH_INNER) };

	if (!cfg || !hop)
		return drop(ctx, R_DROP_ERROR);
	copy_mac(eth.src, hop->src);
	copy_mac(eth.dst, hop->dst);
	if (bpf_skb_store_bytes(ctx, 0, &eth, sizeof(eth), 0) || set_tunnel(ctx, hop->vni, hop->provider))
		return drop(ctx, R_DROP_ERROR);
	return end(ctx, R_SLOW_PATH, bpf_redirect(cfg->vxlan_ifindex, 0));
}

/* Push outer IP, UDP, VXLAN and inner Ethernet, and send. MISS, the packet untouched, when the kernel cannot. */
NOINLINE int push_tunnel(struct __sk_buff *ctx, const struct pkt *p, const struct hop *hop)
{
	struct config *cfg = settings();
	__u32 hash, length = ctx->len - ETH_LEN + VXLAN_PUSH;
	OUTER_ROOM(o);

	if (!cfg || !p || !hop)
		return drop(ctx, R_DROP_ERROR);
	if (cfg->slow)
		return MISS;
	hash = bpf_get_hash_recalc(ctx);
	o->sport = bpf_htons(32768 | ((hash ^ (hash >> 16)) & 0x7fff));
	o->dport = cfg->vxlan_port;
	o->udp_len = bpf_htons(length - OUTER_HEAD);
	o->flags = bpf_htonl(VXLAN_HAS_VNI);
	o->vni = bpf_htonl(hop->vni << 8);
	copy_mac(o->eth.src, hop->src);
	copy_mac(o->eth.dst, hop->dst);
	o->eth.proto = bpf_htons(ETH_INNER);
	write_outer((void *)o, cfg, hop->provider, length, p->tos & 3 /* ECN, RFC 6040 */, p->df, hash);
	if (bpf_skb_adjust_room(ctx, VXLAN_PUSH, BPF_ADJ_ROOM_MAC, PUSH_FLAGS))
		return MISS;
	if (bpf_skb_store_bytes(ctx, ETH_LEN, o, sizeof(*o), 0))
		return drop(ctx, R_DROP_ERROR);
	return end(ctx, R_ENCAPSULATED, to_host_at(cfg, hop->provider));
}

/* To another host. The caller has looked at the size: too big for one frame goes the slow path. */
INLINE int encapsulate(struct __sk_buff *ctx, const struct pkt *p, const struct hop *hop, __u32 slow)
{
	if (!slow && ctx->len - ETH_LEN + VXLAN_PUSH <= 0xffff) {
		int sent = push_tunnel(ctx, p, hop);

		if (sent != MISS)
			return sent;
	}
	return slow_path(ctx, hop);
}
