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
	if (a.hardware != bpf_htons(1) || a.protocol != bpf_htons(ETH_IP) || a.hlen != 6 || a.plen != 4)
		return drop(ctx, R_DROP_GARBAGE);
	if (!same_mac(a.sha, port->mac))
		return drop(ctx, R_DROP_SPOOFED);
	__builtin_memcpy(&target, a.tpa, 4);
	if (a.op != bpf_htons(1) || target == port->addr)
		return drop(ctx, R_DROP_ARP);
	vni = port->vni;
	e = endpoint_of(vni, target);
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

/* ICMP echo to an address that is nobody's: the VIP or the gateway itself answers. */
NOINLINE int answer_echo(struct __sk_buff *ctx, struct pkt *p)
{
	struct flow back = {};
	__u8 zero = 0;

	if (!p)
		return drop(ctx, R_DROP_ERROR);
	back.saddr = p->daddr;
	back.daddr = p->saddr;
	if (bpf_l4_csum_replace(ctx, p->l4 + 2, bpf_htons(0x0800), 0, 2) ||
	    bpf_skb_store_bytes(ctx, p->l4, &zero, 1, 0) || translate(ctx, p, &back))
		return drop(ctx, R_DROP_ERROR);
	return reflect(ctx, p->origin, R_ANSWERED_ECHO);
}

/* RFC 9293 section 3.5.2: what a closed port sends. The checksum is computed in full; a CHECKSUM_PARTIAL mark left
 * on the skb only makes a local receiver skip the check. */
NOINLINE int answer_reset(struct __sk_buff *ctx, struct pkt *p)
{
	struct {
		struct ip ip;
		struct tcp tcp;
	} r = {};
	struct {
		__be32 saddr, daddr;
		__be16 proto, length;
	} pseudo = {};
	struct tcp in;
	__u64 sum;

	if (!p)
		return drop(ctx, R_DROP_ERROR);
	if (p->ihl != IP_LEN || bpf_skb_load_bytes(ctx, p->l4, &in, sizeof(in)))
		return drop(ctx, R_DROP_NO_BACKEND);
	if (in.flags & TCP_RST)
		return drop(ctx, R_DROP_NO_BACKEND);
	r.ip.version_ihl = 0x45;
	r.ip.length = bpf_htons(sizeof(r));
	r.ip.frag = bpf_htons(0x4000);
	r.ip.ttl = 64;
	r.ip.proto = PROTO_TCP;
	r.ip.saddr = p->daddr;
	r.ip.daddr = p->saddr;
	seal_ip(&r.ip);
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
	pseudo.saddr = r.ip.saddr;
	pseudo.daddr = r.ip.daddr;
	pseudo.proto = bpf_htons(PROTO_TCP);
	pseudo.length = bpf_htons(sizeof(r.tcp));
	sum = (__u32)bpf_csum_diff(0, 0, (__be32 *)&pseudo, sizeof(pseudo), 0);
	sum = (__u32)bpf_csum_diff(0, 0, (__be32 *)&r.tcp, sizeof(r.tcp), sum);
	r.tcp.sum = fold(sum);
	if (bpf_skb_change_tail(ctx, ETH_LEN + sizeof(r), 0) || bpf_skb_store_bytes(ctx, ETH_LEN, &r, sizeof(r), 0))
		return drop(ctx, R_DROP_NO_BACKEND);
	return reflect(ctx, p->origin, R_REFUSED);
}

struct icmp_error {
	struct ip ip;
	__u8 type, code;
	__u16 sum;
	__be16 unused, mtu;
};

/* RFC 792/1191 destination unreachable, quoting the first `quote` bytes of the packet (a constant multiple of 4).
 */
INLINE int answer_unreachable(struct __sk_buff *ctx, struct pkt *p, __u8 code, __u16 mtu, const __u32 quote,
			      __u32 reason)
{
	struct icmp_error e = {};
	__u32 quoted[12];
	__u64 sum;

	if (p->length < quote || p->ihl != IP_LEN || bpf_skb_load_bytes(ctx, ETH_LEN, quoted, quote))
		return drop(ctx, R_DROP_ERROR);
	e.ip.version_ihl = 0x45;
	e.ip.length = bpf_htons(sizeof(e) + quote);
	e.ip.ttl = 64;
	e.ip.proto = PROTO_ICMP;
	e.ip.saddr = p->complain;
	e.ip.daddr = p->saddr;
	seal_ip(&e.ip);
	e.type = 3;
	e.code = code;
	e.mtu = bpf_htons(mtu);
	sum = (__u32)bpf_csum_diff(0, 0, (__be32 *)&e.type, 8, 0);
	sum = (__u32)bpf_csum_diff(0, 0, quoted, quote, sum);
	e.sum = fold(sum);
	if (bpf_skb_change_tail(ctx, ETH_LEN + quote, 0) || bpf_skb_adjust_room(ctx, sizeof(e), BPF_ADJ_ROOM_MAC, 0) ||
	    bpf_skb_store_bytes(ctx, ETH_LEN, &e, sizeof(e), 0))
		return drop(ctx, R_DROP_ERROR);
	return reflect(ctx, p->origin, reason);
}

/* `mtu`: of the path, in bytes of the outer packet. */
NOINLINE int answer_too_big(struct __sk_buff *ctx, struct pkt *p, __u32 mtu)
{
	if (!p)
		return drop(ctx, R_DROP_ERROR);
	return answer_unreachable(ctx, p, 4, mtu - VXLAN_PUSH, 48, R_TOO_BIG);
}

NOINLINE int answer_port_unreachable(struct __sk_buff *ctx, struct pkt *p)
{
	if (!p)
		return drop(ctx, R_DROP_ERROR);
	return answer_unreachable(ctx, p, 3, 0, 28, R_REFUSED);
}

/* Nobody serves this address and port. */
NOINLINE int refuse(struct __sk_buff *ctx, struct pkt *p)
{
	if (!p || p->later)
		return drop(ctx, R_DROP_NO_BACKEND);
	if (p->proto == PROTO_TCP)
		return answer_reset(ctx, p);
	if (p->proto == PROTO_UDP)
		return answer_port_unreachable(ctx, p);
	return drop(ctx, R_DROP_NO_BACKEND);
}
