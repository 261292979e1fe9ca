/* SPDX-License-Identifier: Apache-2.0 */
/* Which backend a new connection to a frontend gets, the same for a packet that begins it (flow.h) and for a socket that
 * asks for it (socket.c). */
#pragma once
#include "affinity.h"

LOOKUP struct frontend *frontend_of(__u32 vni, const addr_t *addr, __be16 port, __u8 proto)
{
	struct frontend_key key = { .vni = vni, .addr = *addr, .port = port, .proto = proto };
	struct frontend *fe = bpf_map_lookup_elem(&frontends, &key);

	if (fe || !vni)
		return fe;
	key.port = 0;
	fe = bpf_map_lookup_elem(&frontends, &key);
	if (fe)
		return fe;
	key.proto = 0;
	key.port = port;
	fe = bpf_map_lookup_elem(&frontends, &key);
	if (fe)
		return fe;
	key.port = 0;
	return bpf_map_lookup_elem(&frontends, &key);
}

/* Have `f` go to backend `b`; -1 when its endpoint does not exist (yet). */
INLINE int take(const struct frontend *fe, __u8 proto, __be16 dport, const struct backend *b, struct flow *f)
{
	struct endpoint *e = endpoint_of(b->vni, &b->addr);

	if (!e || e->kind > K_REMOTE)
		return -1;
	if (proto == PROTO_SCTP && b->port && b->port != dport)
		return -1;
	f->list = fe->list;
	f->peer_vni = f->vni = b->vni;
	f->daddr = b->addr;
	f->dport = b->port ? b->port : dport;
	if (!is_none(b->source))
		f->saddr = b->source;
	if (fe->flags & FRONTEND_PRESERVES) {
		f->state |= STATE_PRESERVED;
		f->dport = dport;
	}
	f->sandbox = e->kind == K_LOCAL ? e->sandbox : 0;
	return 0;
}

/* Choose a backend for `client`, who asks for port `dport` of `front`: the client's own with session affinity, else in
 * turn among those whose endpoint exists. 0, or -1 when there is none. */
INLINE int pick(const struct frontend *fe, __u32 scope, const addr_t *front, const addr_t *client, __u8 proto,
		__be16 dport, struct flow *f)
{
	struct affinity_key who = { .scope = scope, .front = *front, .client = *client };
	__u32 slot = fe->list & (TURNS - 1), start, count = fe->count;
	__u32 *turn = bpf_map_lookup_elem(&turns, &slot);
	struct backend own = {};

	if (!turn || !count)
		return -1;
	if (fe->affinity & AFFINITY_PROTOCOL)
		who.proto = proto;
	if (fe->affinity) {
		if (!same_backend(fe, &who, &own) && !take(fe, proto, dport, &own, f))
			return 0;
		if (preferred_backend(fe, &who, proto == PROTO_SCTP ? dport : 0, &own) || take(fe, proto, dport, &own, f))
			return -1;
		keep_backend(fe, &who, &own);
		return 0;
	}
	start = __sync_fetch_and_add(turn, 1);
	for (int i = 0; i < 16; i++) {
		struct backend_key key = { .list = fe->list, .index = (start + i) % count };
		struct backend *b = bpf_map_lookup_elem(&backends, &key);

		if (b && !take(fe, proto, dport, b, f))
			return 0;
	}
	return -1;
}

/* The backend that pick() gave is not taken: the next to ask gets it. Who has session affinity keeps it. */
INLINE void give_back(const struct frontend *fe)
{
	__u32 slot = fe->list & (TURNS - 1);
	__u32 *turn = bpf_map_lookup_elem(&turns, &slot);

	if (turn && !fe->affinity)
		__sync_fetch_and_sub(turn, 1);
}
