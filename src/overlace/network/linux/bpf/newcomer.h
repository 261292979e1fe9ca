/* SPDX-License-Identifier: Apache-2.0 */
/* TCP connections too young for a unified flow: counted in a small table of each processor until they prove longer than
 * most. */
#pragma once
#include "packet.h"

/* What a quick look at a packet found; its headers are linear. */
struct seen {
	struct pkt p; /* p.came.proto: 0 when it is none that may have a unified flow */
	__u8 other_family, closed;
	__u32 place, name; /* as a newcomer */
	__u32 began;
	__u64 packets, bytes; /* what its flow carried, when that is to be decided anew */
};

QUICK_ROOM_FOR(seen, s);

/* The first packets of a TCP connection that plain.h takes are counted here while nobody looks at flows: most connections
 * are over soon, and to remember one costs as much as two of its packets. */
INLINE int is_newcomer(struct seen *s)
{
	const struct unified_key *came = &s->p.came;
	__u64 hash = ((__u64)digest(came->saddr) << 32 | digest(came->daddr)) * 0x9e3779b97f4a7c15ull;
	struct newcomer *n;

	hash ^= hash >> 32 ^ (__u64)came->point << 32 ^ ((__u32)came->sport << 16 | came->dport);
	hash *= 0x9e3779b97f4a7c15ull;
	s->place = hash >> 53;
	s->name = hash >> 20 & ~15u;
	n = bpf_map_lookup_elem(&newcomers, &s->place);
	return n && n->name > s->name && (n->name & ~15u) == s->name;
}

/* Whether the connection is to stay one for now. Else `s` has what it carried so far. */
INLINE int stays_newcomer(struct seen *s)
{
	struct newcomer *n = bpf_map_lookup_elem(&newcomers, &s->place);
	__u32 zero = 0, *until = bpf_map_lookup_elem(&watched, &zero);

	if (!n)
		return 0;
	if ((n->name & ~15u) != s->name) {
		n->name = s->name;
		n->bytes = 0;
		n->began = now();
	}
	if ((n->name & 15) < BRIEF && !(until && *until && now() < *until)) {
		n->name += 1;
		n->bytes += s->p.length;
		return 1;
	}
	s->packets = n->name & 15;
	s->bytes = n->bytes;
	s->began = n->began;
	n->name = 0;
	return 0;
}

/* Its packets are the layers' from now on. */
INLINE int leave_to_layers(struct seen *s)
{
	struct newcomer *n = bpf_map_lookup_elem(&newcomers, &s->place);

	if (n && (n->name & ~15u) == s->name)
		n->name = 0;
	return MISS;
}
