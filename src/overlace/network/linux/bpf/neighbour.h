/* SPDX-License-Identifier: Apache-2.0 */
/* IPv6 on the link: neighbour discovery answered by the switch (RFC 4861, 4862), and what else is for the link alone and
 * goes nowhere. */
#pragma once
#include "answer.h"
#include "last_step.h"


#define NA_ROUTER 0x80
#define NA_SOLICITED 0x40
#define NA_OVERRIDE 0x20

struct neighbour { /* both messages, without options */
	__u8 type, code;
	__u16 sum;
	__u8 flags, reserved[3];
	addr_t target;
};

/* The link-local address made from a MAC: RFC 4291, appendix A. */
INLINE addr_t link_local(const __u8 *mac)
{
	addr_t a = {};

	a.w[0] = bpf_htonl(0xfe800000);
	a.w[2] = bpf_htonl((__u32)(mac[0] ^ 2) << 24 | (__u32)mac[1] << 16 | (__u32)mac[2] << 8 | 0xff);
	a.w[3] = bpf_htonl(0xfe000000 | (__u32)mac[3] << 16 | (__u32)mac[4] << 8 | mac[5]);
	return a;
}

/* Whether the packet is for the link it was sent on, and not forwarded by anyone. */
INLINE int is_of_the_link(const struct pkt *p)
{
	if (is_for_routers(p))
		return 1;
	return is_multicast(p->daddr) || is_link_local(p->daddr) || is_link_local(p->saddr) || is_multicast(p->saddr) ||
	       is_none(p->saddr);
}

/* The end of what every host says on its link without being asked: it is counted, and no drop that anyone is told of. */
INLINE int end_quietly(struct __sk_buff *ctx)
{
	return end(ctx, R_DROP_UNSUPPORTED, TC_ACT_SHOT);
}

INLINE int is_own(const struct port *port, addr_t a)
{
	return same(a, port->addr) || same(a, link_local(port->mac));
}

/* Answer for the gateway, every known endpoint and every VIP, as answer_arp() does: to who asks whether an address is
 * free (RFC 4862 section 5.4), too. */
NOINLINE int answer_neighbour(struct __sk_buff *ctx, struct pkt *p, struct port *port)
{
	struct {
		head_t ip;
		struct neighbour n;
		__u8 option, units;
		__u8 mac[6];
	} r = {};
	addr_t everyone = { .w = { bpf_htonl(0xff020000), 0, 0, bpf_htonl(1) } };
	struct neighbour asked;
	struct network *net;
	struct endpoint *e;
	__u32 vni;

	if (!p || !port)
		return drop(ctx, R_DROP_ERROR);
	if (p->length < p->ihl + sizeof(asked) || bpf_skb_load_bytes(ctx, p->l4, &asked, sizeof(asked)) || asked.code ||
	    is_multicast(asked.target))
		return drop(ctx, R_DROP_GARBAGE);
	if (is_own(port, asked.target))
		return drop(ctx, R_DROP_ARP); /* nobody else has it */
	vni = port->vni;
	e = endpoint_of(vni, &asked.target);
	net = bpf_map_lookup_elem(&networks, &vni);
	if (!e || !net)
		return drop(ctx, R_DROP_ARP);
	copy_mac(r.mac, e->kind == K_VIP ? net->gateway_mac : e->mac);
	r.n.type = NEIGHBOUR_ADVERTISEMENT;
	r.n.flags = NA_OVERRIDE | (e->kind == K_GATEWAY ? NA_ROUTER : 0) | (is_none(p->saddr) ? 0 : NA_SOLICITED);
	r.n.target = asked.target;
	r.option = 2; /* the target's link-layer address */
	r.units = 1;
	write_head(&r.ip, PROTO_ICMP, sizeof(r) - sizeof(r.ip), asked.target, is_none(p->saddr) ? everyone : p->saddr, 0);
	r.ip.hops = 255;
	r.n.sum = fold((__u32)bpf_csum_diff(0, 0, (__be32 *)&r.n, sizeof(r) - sizeof(r.ip),
					    pseudo_sum(&r.ip, PROTO_ICMP, sizeof(r) - sizeof(r.ip))));
	if (bpf_skb_change_tail(ctx, ETH_LEN + sizeof(r), 0) || bpf_skb_store_bytes(ctx, ETH_LEN, &r, sizeof(r), 0) ||
	    bpf_skb_store_bytes(ctx, 0, r.mac, 6, 0))
		return drop(ctx, R_DROP_ERROR);
	return reflect(ctx, FROM_CONTAINER, R_ANSWERED_ARP);
}

/* A container's packet that is for its link. Whoever speaks there for another one, or as a router, is stopped; what
 * every host says there without being asked (router solicitations, multicast listeners) ends quietly. */
NOINLINE int on_the_link(struct __sk_buff *ctx, struct pkt *p, struct port *port)
{
	addr_t target;

	if (!p || !port)
		return drop(ctx, R_DROP_ERROR);
	if (!is_own(port, p->saddr) && !is_none(p->saddr))
		return drop(ctx, R_DROP_SPOOFED);
	if (p->proto != PROTO_ICMP || p->fragment || p->icmp_type < ROUTER_SOLICITATION || p->icmp_type > REDIRECT)
		return end_quietly(ctx);
	if (p->hops != 255)
		return drop(ctx, R_DROP_GARBAGE);
	if (p->icmp_type == NEIGHBOUR_SOLICITATION)
		return answer_neighbour(ctx, p, port);
	if (p->icmp_type == ROUTER_SOLICITATION)
		return end_quietly(ctx);
	if (p->icmp_type == NEIGHBOUR_ADVERTISEMENT) {
		if (bpf_skb_load_bytes(ctx, p->l4 + 8, &target, sizeof(target)))
			return drop(ctx, R_DROP_GARBAGE);
		if (is_own(port, target))
			return end_quietly(ctx); /* nobody learns from it */
	}
	return drop(ctx, R_DROP_SPOOFED);
}
