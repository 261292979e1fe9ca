/* SPDX-License-Identifier: Apache-2.0 */
/* IPv6 inside the overlay: reading and rewriting its headers (RFC 8200, 4443). Of extension headers only the fragment
 * header is known: what may change on the way (hop by hop, routing, destination options) is not forwarded. */
#pragma once

typedef struct ip6 head_t;

#define NEXT_HOPS 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_OPTIONS 60
#define CSUM_IPV6 (1ULL << 7) /* BPF_F_IPV6, Linux 6.16 */

#define MLD_FIRST 130
#define ROUTER_SOLICITATION 133
#define ROUTER_ADVERTISEMENT 134
#define NEIGHBOUR_SOLICITATION 135
#define NEIGHBOUR_ADVERTISEMENT 136
#define REDIRECT 137
#define MLD2_REPORT 143

/* Neighbour discovery and multicast listeners: the switch's, as the link's router, and never forwarded. */
INLINE int is_for_routers(const struct pkt *p)
{
	return p->proto == PROTO_ICMP && !p->later &&
	       ((p->icmp_type >= MLD_FIRST && p->icmp_type <= REDIRECT) || p->icmp_type == MLD2_REPORT);
}

INLINE __u8 tos_of(const head_t *h)
{
	return bpf_ntohl(h->first) >> 20;
}

INLINE int is_plain(const head_t *h)
{
	return (h->first & bpf_htonl(0xf0000000)) == bpf_htonl(0x60000000);
}

INLINE __u32 length_of(const head_t *h)
{
	return IP_HEAD + bpf_ntohs(h->payload);
}

INLINE __u8 proto_of(const head_t *h)
{
	return h->next;
}

INLINE int is_whole(const head_t *h)
{
	return 1; /* nobody on the way fragments it */
}

INLINE void write_head(head_t *h, __u8 proto, __u32 payload, addr_t from, addr_t to, int whole)
{
	h->first = bpf_htonl(0x60000000);
	h->payload = bpf_htons(payload);
	h->next = proto;
	h->hops = 64;
	h->saddr = from;
	h->daddr = to;
}

/* RFC 8200 section 8.1 */
INLINE __u32 pseudo_sum(const head_t *h, __u8 proto, __u32 payload)
{
	struct {
		__be32 length, proto;
	} rest = { .length = bpf_htonl(payload), .proto = bpf_htonl(proto) };
	__u32 sum = bpf_csum_diff(0, 0, (__be32 *)&h->saddr, 32, 0);

	return bpf_csum_diff(0, 0, (__be32 *)&rest, sizeof(rest), sum);
}

/* As packet4.h has it. The mark of a traced packet is its flow label. */
INLINE int read_head(struct __sk_buff *ctx, __u32 l3, struct pkt *p, frag_id_t *id, __u32 *mark)
{
	struct ip6 ip;
	struct {
		__u8 next, reserved;
		__be16 offset;
		__be32 id;
	} frag;

	if (bpf_skb_load_bytes(ctx, l3, &ip, sizeof(ip)))
		return R_DROP_GARBAGE;
	if (!is_plain(&ip) || length_of(&ip) > 0xffff || ctx->len < l3 + length_of(&ip))
		return R_DROP_GARBAGE;
	p->ihl = IP_HEAD;
	p->length = length_of(&ip);
	*mark = bpf_ntohl(ip.first) & 0xfffff;
	p->saddr = ip.saddr;
	p->daddr = ip.daddr;
	p->proto = ip.next;
	p->hops = ip.hops;
	p->tos = tos_of(&ip);
	p->l3 = l3;
	p->df = 1;
	p->later = p->fragment = 0;
	if (ip.next == NEXT_FRAGMENT) {
		if (p->length < IP_HEAD + sizeof(frag) || bpf_skb_load_bytes(ctx, l3 + IP_HEAD, &frag, sizeof(frag)))
			return R_DROP_GARBAGE;
		*id = frag.id;
		p->ihl += sizeof(frag);
		p->proto = frag.next;
		p->fragment = 1;
		p->later = (frag.offset & bpf_htons(0xfff8)) != 0;
	}
	p->l4 = l3 + p->ihl;
	if (p->proto == NEXT_HOPS || p->proto == NEXT_ROUTING || p->proto == NEXT_OPTIONS || p->proto == NEXT_FRAGMENT)
		return R_DROP_UNSUPPORTED;
	return 0;
}

/* RFC 4443 section 2.1: types below 128 are errors. Of those nobody knows the sense is not looked for. */
INLINE int is_error(__u8 type)
{
	return type >= 1 && type <= 4;
}

/* The error quotes the packet it is about from its IPv6 header on. */
INLINE void parse_error(struct __sk_buff *ctx, struct pkt *p)
{
	struct {
		struct ip6 ip;
		__be16 sport, dport;
	} quote;

	if (bpf_skb_load_bytes(ctx, p->l4 + 8, &quote, sizeof(quote)) || !is_plain(&quote.ip) ||
	    !same(quote.ip.saddr, p->daddr) || (quote.ip.next != PROTO_TCP && quote.ip.next != PROTO_UDP && quote.ip.next != PROTO_SCTP))
		return;
	p->error = 1;
	p->error_proto = quote.ip.next;
	p->error_saddr = quote.ip.daddr;
	p->error_daddr = quote.ip.saddr;
	p->sport = quote.dport;
	p->dport = quote.sport;
}

INLINE __u32 sum_offset(const struct pkt *p)
{
	return p->l4 + (p->proto == PROTO_TCP ? 16 : p->proto == PROTO_UDP ? 6 : 2);
}

#define SOURCE_AT 8
#define TARGET_AT 24

/* The kernel keeps the checksum a network card gave it true. Kernels that do not know the flag take the change for one of
 * IPv4, whose own checksum would change, too. */
INLINE int set_addr(struct __sk_buff *ctx, const struct pkt *p, __u32 at, addr_t from, addr_t to)
{
	if (same(from, to))
		return 0;
	if (!p->later && (p->proto == PROTO_TCP || p->proto == PROTO_UDP || p->proto == PROTO_ICMP)) {
		__u64 flags = BPF_F_PSEUDO_HDR | (p->proto == PROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0);
		__s64 change = bpf_csum_diff(from.w, sizeof(from), to.w, sizeof(to), 0);

		if (bpf_l4_csum_replace(ctx, sum_offset(p), 0, change, flags | CSUM_IPV6) &&
		    bpf_l4_csum_replace(ctx, sum_offset(p), 0, change, flags))
			return -1;
	}
	return bpf_skb_store_bytes(ctx, p->l3 + at, &to, sizeof(to), 0);
}

/* Change an address inside the packet an ICMPv6 error quotes: the error's checksum counts it. */
INLINE int set_quoted_addr(struct __sk_buff *ctx, const struct pkt *p, __u32 at, addr_t from, addr_t to)
{
	if (same(from, to))
		return 0;
	if (bpf_l4_csum_replace(ctx, sum_offset(p), 0, bpf_csum_diff(from.w, sizeof(from), to.w, sizeof(to), 0), 0))
		return -1;
	return bpf_skb_store_bytes(ctx, p->l4 + 8 + at, &to, sizeof(to), 0);
}
