/* SPDX-License-Identifier: Apache-2.0 */
/* Session affinity: a client's new connections to a frontend go where its last one went, for a time. Where a client that
 * is new to this host goes follows from its address and the backends' alone (rendezvous hashing), so that every host the
 * client may come in by chooses the same: vfp/affinity.py is the same in Python. */
#pragma once
#include "maps.h"

/* All bits of a word in each other (the finalizer of MurmurHash3, which is in the public domain). */
INLINE __u32 mixed(__u32 h)
{
	h ^= h >> 16;
	h *= 0x85ebca6b;
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	return h ^ h >> 16;
}

INLINE __u32 hash_of(const addr_t *a)
{
	__u32 h = 0;

	for (int i = 0; i < ADDR_BITS / 32; i++)
		h = mixed(h ^ word_of(a, i));
	return h;
}

struct preferring {
	__u64 list;
	__u32 count, client, best;
	__u16 found, fixed; /* fixed: the port that SCTP's backends must have */
	struct backend own;
};

/* The next backend of the list: the one with the highest weight whose endpoint exists is the client's. */
static long weigh(__u32 i, struct preferring *c)
{
	struct backend_key key = { .list = c->list, .index = i };
	struct backend *b;
	struct endpoint *e;
	__u32 weight;

	if (i >= c->count)
		return 1;
	b = bpf_map_lookup_elem(&backends, &key);
	if (!b || (c->fixed && b->port && b->port != c->fixed))
		return 0;
	weight = mixed(c->client + (hash_of(&b->addr) ^ bpf_ntohs(b->port)));
	if (c->found && weight <= c->best)
		return 0;
	e = endpoint_of(b->vni, &b->addr);
	if (!e || e->kind > K_REMOTE)
		return 0;
	c->found = 1;
	c->best = weight;
	c->own = *b;
	return 0;
}

/* The backend of a client that has none here; `fixed` as in struct preferring. 0, or -1: no endpoint of the list exists. */
NOINLINE int preferred_backend(const struct frontend *fe, const struct affinity_key *client, __u32 fixed,
			       struct backend *out)
{
	struct preferring ctx = {};

	if (!fe || !client || !out)
		return -1;
	ctx.list = fe->list;
	ctx.count = fe->count;
	ctx.client = hash_of(&client->client);
	ctx.fixed = fixed;
	bpf_loop(BACKENDS, weigh, &ctx, 0);
	if (!ctx.found)
		return -1;
	*out = ctx.own;
	return 0;
}

/* The backend this client has, if it still is one of the frontend's. 0, or -1: choose one. */
NOINLINE int same_backend(const struct frontend *fe, const struct affinity_key *client, struct backend *out)
{
	struct member member = {};
	struct affinity *a;
	addr_t *source;
	__u32 at = now();

	if (!fe || !client || !out || !fe->affinity)
		return -1;
	a = bpf_map_lookup_elem(&affinities, client);
	if (!a || at - a->seen > (fe->affinity & ~AFFINITY_PROTOCOL))
		return -1;
	member.list = fe->list;
	member.vni = a->vni;
	member.addr = a->addr;
	member.port = a->port;
	source = bpf_map_lookup_elem(&members, &member);
	if (!source)
		return -1;
	a->seen = at;
	out->vni = a->vni;
	out->addr = a->addr;
	out->port = a->port;
	out->source = *source;
	return 0;
}

NOINLINE int keep_backend(const struct frontend *fe, const struct affinity_key *client, const struct backend *b)
{
	struct affinity new = {};

	if (!fe || !client || !b || !fe->affinity)
		return 0;
	new.vni = b->vni;
	new.addr = b->addr;
	new.port = b->port;
	new.seen = now();
	return bpf_map_update_elem(&affinities, client, &new, BPF_ANY);
}
