/* SPDX-License-Identifier: Apache-2.0 */
/* Packets the data path makes itself: ARP replies, echo replies, TCP resets, ICMP errors. All go back where the
 * question came from. */
#pragma once
#include "packet.h"

/* Send the frame back out of the interface it came by. */
INLINE int reflect(struct __sk_buff *ctx, __u32 origin, __u32 reason)
{
	struct eth eth, back;

	if (bpf_skb_load_bytes(ctx, 0, &eth, sizeof(eth)))
		return drop(ctx, R_DROP_ERROR);
	copy_mac(back.dst, eth.src);
	copy_mac(back.src, eth.dst);
	if (bpf_skb_store_bytes(ctx, 0, &back, 12, 0))
		return drop(ctx, R_DROP_ERROR);
	if (origin == FROM_CONTAINER) {
		bpf_skb_change_type(ctx, HOST_PACKET);
		return end(ctx, reason, bpf_redirect_peer(ctx->ifindex, 0));
	}
	return end(ctx, reason, bpf_redirect(ctx->ifindex, origin == FROM_HOST ? BPF_F_INGRESS : 0));
}

#ifndef OVERLACE_IPV6
struct arp { /* RFC 826 for Ethernet and IPv4 */
	__be16 hardware, protocol;
	__u8 hlen, plen;
	__be16 op;
	__u8 sha[6];
	__u8 spa[4];
	__u8 tha[6];
	__u8 tpa[4];
} __attribute__((packed, aligned(2)));

/* Answer for the gateway, every known endpoint and every VIP. The sender's address may be that of another interface
 * of the same container (Linux does so), and nothing learns from it, so it is not checked. */
NOINLINE int answer_arp(struct __sk_buff *ctx, struct port *port)
{
	struct arp a, r;
	struct endpoint *e;
	struct network *net;
	__u8 mac[6] __attribute__((aligned(2)));
	__be32 target;
	__u32 vni;

	if (!port || bpf_skb_load_bytes(ctx, ETH_LEN, &a, sizeof(a)))
		return drop(ctx, R_DROP_GARBAGE);
	if (a.hardware != bpf_htons(1) || a.protocol != bpf_htons(ETH_IPV4) || a.hlen != 6 || a.plen != 4)
		return drop(ctx, R_DROP_GARBAGE);
	if (!same_mac(a.sha, port->mac))
		return drop(ctx, R_DROP_SPOOFED);
	__builtin_memcpy(&target, a.tpa, 4);
	if (a.op != bpf_htons(1) || target == port->addr)
		return drop(ctx, R_DROP_ARP);
	vni = port->vni;
	e = endpoint_of(vni, &target);
	if (!e)
		return drop(ctx, R_DROP_ARP);
	copy_mac(mac, e->mac);
	if (e->kind == K_VIP) {
		net = bpf_map_lookup_elem(&networks, &vni);
		if (!net)
			return drop(ctx, R_DROP_ARP);
		copy_mac(mac, net->gateway_mac);
	}
	r = a;
	r.op = bpf_htons(2);
	copy_mac(r.sha, mac);
	copy_mac(r.tha, a.sha);
	__builtin_memcpy(r.spa, a.tpa, 4);
	__builtin_memcpy(r.tpa, a.spa, 4);
	if (bpf_skb_store_bytes(ctx, ETH_LEN, &r, sizeof(r), 0) || bpf_skb_store_bytes(ctx, 0, mac, 6, 0))
		return drop(ctx, R_DROP_ERROR);
	return reflect(ctx, FROM_CONTAINER, R_ANSWERED_ARP);
}
#endif

/* ICMP echo to an address that is nobody's: the VIP or the gateway itself answers. */
NOINLINE int answer_echo(struct __sk_buff *ctx, struct pkt *p)
{
	__u8 reply = ECHO_REPLY;
	QUICK_ROOM(flow, as);

	if (!p)
		return drop(ctx, R_DROP_ERROR);
	as->saddr = p->daddr;
	as->daddr = p->saddr;
	if (bpf_l4_csum_replace(ctx, p->l4 + 2, bpf_htons(ECHO_REQUEST << 8), bpf_htons(ECHO_REPLY << 8), 2) ||
	    bpf_skb_store_bytes(ctx, p->l4, &reply, 1, 0) || translate(ctx, p, as))
		return drop(ctx, R_DROP_ERROR);
	return reflect(ctx, p->origin, R_ANSWERED_ECHO);
}

/* RFC 9293 section 3.5.2: what a closed port sends. The checksum is computed in full; a CHECKSUM_PARTIAL mark left
 * on the skb only makes a local receiver skip the check. */
NOINLINE int answer_reset(struct __sk_buff *ctx, struct pkt *p)
{
	struct {
		head_t ip;
		struct tcp tcp;
	} r = {};
	struct tcp in;

	if (!p)
		return drop(ctx, R_DROP_ERROR);
	if (p->ihl != IP_HEAD || bpf_skb_load_bytes(ctx, p->l4, &in, sizeof(in)))
		return drop(ctx, R_DROP_NO_BACKEND);
	if (in.flags & TCP_RST)
		return drop(ctx, R_DROP_NO_BACKEND);
	write_head(&r.ip, PROTO_TCP, sizeof(r.tcp), p->daddr, p->saddr, 1);
	r.tcp.sport = in.dport;
	r.tcp.dport = in.sport;
	r.tcp.offset = 0x50;
	r.tcp.flags = TCP_RST;
	if (in.flags & TCP_ACK) {
		r.tcp.seq = in.ack;
	} else {
		__u32 used = p->length - p->ihl - (in.offset >> 4) * 4;

		used += (in.flags & TCP_SYN ? 1 : 0) + (in.flags & TCP_FIN ? 1 : 0);
		r.tcp.ack = bpf_htonl(bpf_ntohl(in.seq) + used);
		r.tcp.flags |= TCP_ACK;
	}
	r.tcp.sum = fold((__u32)bpf_csum_diff(0, 0, (__be32 *)&r.tcp, sizeof(r.tcp),
					      pseudo_sum(&r.ip, PROTO_TCP, sizeof(r.tcp))));
	if (bpf_skb_change_tail(ctx, ETH_LEN + sizeof(r), 0) || bpf_skb_store_bytes(ctx, ETH_LEN, &r, sizeof(r), 0))
		return drop(ctx, R_DROP_NO_BACKEND);
	return reflect(ctx, p->origin, R_REFUSED);
}

/* ICMP errors: type << 8 | code. RFC 792, 1191; RFC 4443 sections 3.1, 3.2. */
#ifdef OVERLACE_IPV6
enum { E_TOO_BIG = 2 << 8, E_NO_PORT = 1 << 8 | 4, E_NO_ROUTE = 1 << 8 };
#define ICMP_COUNTS_ADDRESSES 1
#define QUOTE_BIG 88 /* with a fragment header, eight bytes of the transport's */
#else
enum { E_TOO_BIG = 3 << 8 | 4, E_NO_PORT = 3 << 8 | 3 };
#define ICMP_COUNTS_ADDRESSES 0
#define QUOTE_BIG 48
#endif

struct icmp_error {
	head_t ip;
	__u8 type, code;
	__u16 sum;
	__be16 unused, mtu;
};

/* Turn the packet into an error about it that quotes its first `quote` bytes (a constant multiple of 4). 0, or -1. */
INLINE int make_error(struct __sk_buff *ctx, struct pkt *p, __u16 what, __u16 mtu, const __u32 quote)
{
	struct icmp_error e = {};
	__u32 quoted[QUOTE_BIG / 4], sum = 0;

	if (p->length < quote || bpf_skb_load_bytes(ctx, ETH_LEN, quoted, quote))
		return -1;
	write_head(&e.ip, PROTO_ICMP, 8 + quote, p->complain, p->saddr, 0);
	e.type = what >> 8;
	e.code = what;
	e.mtu = bpf_htons(mtu);
	if (ICMP_COUNTS_ADDRESSES)
		sum = pseudo_sum(&e.ip, PROTO_ICMP, 8 + quote);
	sum = (__u32)bpf_csum_diff(0, 0, (__be32 *)&e.type, 8, sum);
	e.sum = fold((__u32)bpf_csum_diff(0, 0, quoted, quote, sum));
	if (bpf_skb_change_tail(ctx, ETH_LEN + quote, 0) || bpf_skb_adjust_room(ctx, sizeof(e), BPF_ADJ_ROOM_MAC, 0))
		return -1;
	return bpf_skb_store_bytes(ctx, ETH_LEN, &e, sizeof(e), 0);
}

/* `mtu`: of the path, in bytes of the outer packet. */
NOINLINE int answer_too_big(struct __sk_buff *ctx, struct pkt *p, __u32 mtu)
{
	if (!p)
		return drop(ctx, R_DROP_ERROR);
	mtu -= VXLAN_PUSH;
#ifdef OVERLACE_IPV6
	if (mtu < IPV6_LEAST)
		mtu = IPV6_LEAST;
#else
	if (p->ihl != IP_HEAD)
		return drop(ctx, R_DROP_ERROR);
#endif
	if (make_error(ctx, p, E_TOO_BIG, mtu, QUOTE_BIG))
		return drop(ctx, R_DROP_ERROR);
	return reflect(ctx, p->origin, R_TOO_BIG);
}

NOINLINE int answer_port_unreachable(struct __sk_buff *ctx, struct pkt *p)
{
	if (!p || p->ihl != IP_HEAD || make_error(ctx, p, E_NO_PORT, 0, IP_HEAD + 8))
		return drop(ctx, R_DROP_ERROR);
	return reflect(ctx, p->origin, R_REFUSED);
}

#ifdef OVERLACE_IPV6
/* Out of the overlay leads no way: said at once, for IPv4 to be tried without waiting. An error is not answered. What
 * the kernel has left to the device to checksum is not cut before the checksum. */
NOINLINE int answer_no_route(struct __sk_buff *ctx, struct pkt *p)
{
	int failed;

	if (!p || p->later || (p->proto == PROTO_ICMP && p->icmp_type < 128))
		return drop(ctx, R_DROP_NO_OUTBOUND);
	note_drop(ctx, R_DROP_NO_OUTBOUND);
	if (p->proto == PROTO_TCP)
		failed = make_error(ctx, p, E_NO_ROUTE, 0, IP_HEAD + sizeof(struct tcp));
	else
		failed = make_error(ctx, p, E_NO_ROUTE, 0, IP_HEAD + 8);
	if (failed)
		return end(ctx, R_DROP_NO_OUTBOUND, TC_ACT_SHOT);
	return reflect(ctx, p->origin, R_DROP_NO_OUTBOUND);
}
#endif

/* Nobody serves this address and port. */
NOINLINE int refuse(struct __sk_buff *ctx, struct pkt *p)
{
	if (!p || p->later)
		return drop(ctx, R_DROP_NO_BACKEND);
	if (p->proto == PROTO_TCP)
		return answer_reset(ctx, p);
	if (p->proto == PROTO_UDP || p->proto == PROTO_SCTP)
		return answer_port_unreachable(ctx, p);
	return drop(ctx, R_DROP_NO_BACKEND);
}
