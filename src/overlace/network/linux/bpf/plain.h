/* SPDX-License-Identifier: Apache-2.0 */
/* The way of a packet between two containers of one network, straight from their rows: what the layers come to when no
 * service, access list, route or rate limit has a say in it. Whatever is less plain is left to them. */
#pragma once
#include "access.h"

/* Begin the way of packet `p` in scratch()->way: what it takes to go it. keep() has the rest. */
INLINE struct way *plain_way(struct scratch *s, const struct pkt *p)
{
	struct way *w = &s->way;

	w->saddr = p->saddr;
	w->daddr = p->daddr;
	w->sport = p->sport;
	w->dport = p->dport;
	__builtin_memset(&w->provider, 0, sizeof(w->provider));
	w->vni = w->ifindex = 0;
	__builtin_memset(w->src, 0, sizeof(w->src));
	return w;
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
	struct way *w;

	if (e->kind != K_LOCAL || !e->ifindex || (e->flags & ENDPOINT_FILTERED))
		return 0;
	w = plain_way(s, p);
	w->verdict = W_DELIVER;
	w->ifindex = e->ifindex;
	copy_mac(w->dst, e->mac);
	return 1;
}

/* A TCP or UDP packet from a container: 1, its way is in scratch()->way, or 0. */
NOINLINE int plain_from_container(struct __sk_buff *ctx, const struct pkt *p)
{
	struct scratch *s = scratch();
	struct endpoint *e;
	struct port *port;
	struct way *w;
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
		w = plain_way(s, p);
		w->verdict = W_ENCAPSULATE;
		w->provider = e->provider;
		w->vni = vni;
		copy_mac(w->src, p->own);
		copy_mac(w->dst, e->mac);
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
