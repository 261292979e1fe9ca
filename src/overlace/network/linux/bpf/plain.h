/* SPDX-License-Identifier: Apache-2.0 */
/* The way of a packet between two containers of one network, straight from their rows: what the layers come to when no
 * service, access list, route or rate limit has a say in it. Whatever is less plain is left to them. */
#pragma once
#include "access.h"

/* Begin the way of packet `p` in scratch()->unified: what it takes to go it. keep() has the rest. */
INLINE struct unified_flow *plain_flow(struct scratch *s, const struct pkt *p)
{
	struct unified_flow *u = &s->unified;

	u->saddr = p->saddr;
	u->daddr = p->daddr;
	u->sport = p->sport;
	u->dport = p->dport;
	__builtin_memset(&u->provider, 0, sizeof(u->provider));
	u->vni = u->ifindex = 0;
	__builtin_memset(u->src, 0, sizeof(u->src));
	return u;
}

/* Whether a service's connection goes by this packet's names, or, `back`, its answers by the reverse. */
LOOKUP int is_service(__u32 vni, const struct pkt *p, const int back)
{
	struct flow_key key = { .scope = vni, .proto = p->proto };

	key.saddr = back ? p->daddr : p->saddr;
	key.daddr = back ? p->saddr : p->daddr;
	key.sport = back ? p->dport : p->sport;
	key.dport = back ? p->sport : p->dport;
	return bpf_map_lookup_elem(&flows, &key) != 0;
}

/* Whether the socket level chose a backend for the packet's socket (choice.h). */
INLINE int has_choice(struct __sk_buff *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	sk = sk ? bpf_sk_fullsock(sk) : 0;
	return sk && bpf_sk_storage_get(&choices, sk, 0, 0);
}

/* To endpoint `e` here, if nothing is to be asked or changed first. */
INLINE int plain_delivery(struct scratch *s, const struct pkt *p, const struct endpoint *e)
{
	struct unified_flow *u;

	if (e->kind != K_LOCAL || !e->ifindex || (e->flags & ENDPOINT_FILTERED))
		return 0;
	u = plain_flow(s, p);
	u->verdict = U_DELIVER;
	u->ifindex = e->ifindex;
	copy_mac(u->dst, e->mac);
	return 1;
}

/* A TCP or UDP packet from a container: 1, its way is in scratch()->unified, or 0. */
NOINLINE int plain_from_container(struct __sk_buff *ctx, const struct pkt *p)
{
	struct scratch *s = scratch();
	struct endpoint *e;
	struct port *port;
	struct unified_flow *u;
	__u32 point, vni;

	if (!p || !s || p->tos == TRACE_TOS)
		return 0;
	point = p->came.point;
	port = bpf_map_lookup_elem(&ports, &point);
	if (!port || (port->flags & (PORT_FILTERED | PORT_METERED)) || !same_mac(p->own, port->mac) ||
	    !same(p->saddr, port->addr))
		return 0;
	vni = port->vni;
	if (!bpf_map_lookup_elem(&networks, &vni))
		return 0;
	if (is_service(vni, p, 0))
		return 0;
	if (p->proto == PROTO_TCP && (p->tcp_flags & TCP_SYN) && (is_service(vni, p, 1) || has_choice(ctx)))
		return 0;
	e = endpoint_of(vni, &p->daddr);
	if (!e)
		return 0;
	if (e->kind == K_REMOTE) {
		u = plain_flow(s, p);
		u->verdict = U_ENCAPSULATE;
		u->provider = e->provider;
		u->vni = vni;
		copy_mac(u->src, p->own);
		copy_mac(u->dst, e->mac);
	} else if (!plain_delivery(s, p, e)) {
		return 0;
	}
	return 1;
}

/* The same for one that came in the tunnel, from host `p->from`. */
NOINLINE int plain_from_tunnel(const struct pkt *p)
{
	struct scratch *s = scratch();
	struct endpoint *e;
	struct network *net;
	__u32 vni;

	if (!p || !s || p->tos == TRACE_TOS)
		return 0;
	vni = p->came.point & ~AT_TUNNEL;
	net = bpf_map_lookup_elem(&networks, &vni);
	if (!net || (net->flags & NET_LOCAL))
		return 0;
	e = endpoint_of(vni, &p->saddr);
	if (!e || e->kind != K_REMOTE || !same_host(e->provider, p->from))
		return 0;
	e = endpoint_of(vni, &p->daddr);
	return e && !is_service(vni, p, 0) && plain_delivery(s, p, e);
}
