/* SPDX-License-Identifier: Apache-2.0 */
/* Session affinity: a client's new connections to a frontend go where its last one went, for a time. */
#pragma once
#include "packet.h"

INLINE struct affinity_key affinity_of(const struct frontend *fe, __u32 scope, const addr_t *front, const struct pkt *p)
{
	struct affinity_key key = { .scope = scope, .front = *front, .client = p->saddr };

	if (fe->affinity & AFFINITY_PROTOCOL)
		key.proto = p->proto;
	return key;
}

/* The backend this client has, if it still is one of the frontend's. 0, or -1: choose one. */
NOINLINE int same_backend(const struct frontend *fe, __u32 scope, const addr_t *front, const struct pkt *p,
			  struct backend *out)
{
	struct affinity_key key;
	struct member member = {};
	struct affinity *a;
	__u32 at = now();

	if (!fe || !front || !p || !out || !fe->affinity)
		return -1;
	key = affinity_of(fe, scope, front, p);
	a = bpf_map_lookup_elem(&affinities, &key);
	if (!a || at - a->seen > (fe->affinity & ~AFFINITY_PROTOCOL))
		return -1;
	member.list = fe->list;
	member.vni = a->vni;
	member.addr = a->addr;
	member.port = a->port;
	if (!bpf_map_lookup_elem(&members, &member))
		return -1;
	a->seen = at;
	out->vni = a->vni;
	out->addr = a->addr;
	out->port = a->port;
	return 0;
}

NOINLINE int keep_backend(const struct frontend *fe, __u32 scope, const addr_t *front, const struct pkt *p,
			  const struct backend *b)
{
	struct affinity_key key;
	struct affinity new = {};

	if (!fe || !front || !p || !b || !fe->affinity)
		return 0;
	key = affinity_of(fe, scope, front, p);
	new.vni = b->vni;
	new.addr = b->addr;
	new.port = b->port;
	new.seen = now();
	return bpf_map_update_elem(&affinities, &key, &new, BPF_ANY);
}
