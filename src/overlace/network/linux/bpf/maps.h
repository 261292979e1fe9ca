/* SPDX-License-Identifier: Apache-2.0 */
/* The maps of the data path, by name, size and kind, how the commonest are read, and where a packet's end is counted.
 * loader.py makes them from here; what a row holds is types.h's. */
#pragma once
#include "types.h"

#define MAP(type_, name, key_, value_, max, flags_)                                                                 \
	struct {                                                                                                    \
		__uint(type, type_);                                                                                \
		__type(key, key_);                                                                                  \
		__type(value, value_);                                                                              \
		__uint(max_entries, max);                                                                           \
		__uint(map_flags, flags_);                                                                          \
	} name SEC(".maps")

/* A variable that would not fit on the stack, which has 512 bytes for all callers together. A program is not interrupted
 * by another one on its processor. Each name has a place of its own: nobody may use one while a caller does. */
#define ROOM_FOR(type, name) MAP(BPF_MAP_TYPE_PERCPU_ARRAY, room_##name, __u32, struct type, 1, 0)
#define ROOM(type, name)                                                                                            \
	__u32 only_##name = 0;                                                                                      \
	struct type *name = bpf_map_lookup_elem(&room_##name, &only_##name);                                        \
	if (!name)                                                                                                  \
		return TC_ACT_SHOT;                                                                                 \
	__builtin_memset(name, 0, sizeof(*name))

#ifdef OVERLACE_IPV6
#define REMEMBERED(rows) (rows / 4) /* these take their memory when they are made, used or not */
#define IN_BULK BPF_F_NO_PREALLOC
#else
#define REMEMBERED(rows) rows
#define IN_BULK 0 /* preallocated: filled in bulk */
#endif
#if IS_IPV6 || IS_OVER_IPV6
#define QUICK_ROOM_FOR ROOM_FOR
#define QUICK_ROOM ROOM
#else
/* What a later packet of a connection needs: IPv4's fits on the stack. */
#define QUICK_ROOM_FOR(type, name)
#define QUICK_ROOM(type, name) struct type the_##name = {}, *name = &the_##name
#endif
/* The outer headers: over IPv4 they fit. */
#if IS_OVER_IPV6
#define OUTER_ROOM_FOR ROOM_FOR(outer, o)
#define OUTER_ROOM(name) ROOM(outer, name)
#else
#define OUTER_ROOM_FOR
#define OUTER_ROOM(name) struct outer the_##name __attribute__((aligned(8))) = {}, *name = &the_##name
#endif

MAP(BPF_MAP_TYPE_ARRAY, layout, __u32, __u64, 2, 0);
MAP(BPF_MAP_TYPE_ARRAY, config, __u32, struct config, 1, 0);
MAP(BPF_MAP_TYPE_HASH, networks, __u32, struct network, 4096, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_HASH, endpoints, struct address_key, struct endpoint, 262144, IN_BULK);
MAP(BPF_MAP_TYPE_HASH, ports, __u32, struct port, 16384, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_LPM_TRIE, subnets, struct subnet_key, __u32, 16384, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_LPM_TRIE, exceptions, struct exception_key, __u32, 65536, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_LPM_TRIE, routes, struct route_key, struct route, 16384, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_LPM_TRIE, reaches, struct reach_key, struct reach, 16384, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_SK_STORAGE, choices, int, struct choice, 0, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_HASH, frontends, struct frontend_key, struct frontend, 65536, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_HASH, backends, struct backend_key, struct backend, 262144, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_HASH, access_lists, __u64, struct access_list, 16384, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_LPM_TRIE, address_sets, struct set_key, __u32, 1048576, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_HASH, members, struct member, addr_t, 262144, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_LRU_HASH, affinities, struct affinity_key, struct affinity, REMEMBERED(65536), 0);
MAP(BPF_MAP_TYPE_HASH, floods, struct flood_key, struct flood, 65536, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_LRU_HASH, flood_meters, __u32, __u64, 4096, 0);
MAP(BPF_MAP_TYPE_HASH, limits, __u32, __u64, 16384, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_LRU_HASH, meters, __u32, __u64, 16384, 0);
MAP(BPF_MAP_TYPE_LRU_HASH, allowed, struct access_key, struct access, REMEMBERED(131072), 0);
MAP(BPF_MAP_TYPE_LRU_PERCPU_HASH, hits, struct hit_key, struct hit, 16384, 0);
MAP(BPF_MAP_TYPE_ARRAY, turns, __u32, __u32, TURNS, 0);
MAP(BPF_MAP_TYPE_LRU_HASH, flows, struct flow_key, struct flow, REMEMBERED(131072), 0);
MAP(BPF_MAP_TYPE_ARRAY, generation, __u32, __u32, 1, 0);
MAP(BPF_MAP_TYPE_LRU_HASH, unified_flows, struct unified_key, struct unified_flow, REMEMBERED(65536), 0);
MAP(BPF_MAP_TYPE_PERCPU_ARRAY, newcomers, __u32, struct newcomer, NEWCOMERS, 0);
MAP(BPF_MAP_TYPE_ARRAY, watched, __u32, __u32, 1, 0); /* until when somebody looks at flows, as struct flow's seen */
MAP(BPF_MAP_TYPE_LRU_HASH, fragments, struct fragment_key, struct fragment, REMEMBERED(4096), 0);
MAP(BPF_MAP_TYPE_PERCPU_ARRAY, counters, __u32, __u64, R_COUNT, 0);

ROOM_FOR(pkt, p);

#include "trace.h"

INLINE int end(struct __sk_buff *ctx, __u32 reason, int verdict)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &reason);

	if (n)
		*n += 1;
	ctx->cb[0] = reason; /* BPF_PROG_TEST_RUN reads the decision here */
	if (ctx->cb[1] >> 16 == TRACE_MARK)
		trace_end(ctx, reason);
	return verdict;
}

/* What a program leaves in cb for note_drop and trace.h; whoever had the packet before left anything there. `vni`: of the
 * network the packet is on, 0 while it is on none. */
INLINE void on_network(struct __sk_buff *ctx, __u32 vni)
{
	ctx->cb[2] = vni;
}

INLINE void begin(struct __sk_buff *ctx)
{
	ctx->cb[1] = 0;
	on_network(ctx, 0);
}

MAP(BPF_MAP_TYPE_HASH, drops, struct dropped, __u64, 8192, BPF_F_NO_PREALLOC);

NOINLINE int note_drop(struct __sk_buff *ctx, __u32 reason)
{
	struct dropped key = { .vni = ctx->cb[2], .reason = reason };
	__u64 *n = bpf_map_lookup_elem(&drops, &key), one = 1;

	if (n)
		__sync_fetch_and_add(n, 1);
	else
		bpf_map_update_elem(&drops, &key, &one, BPF_NOEXIST);
	return 0;
}

INLINE int drop(struct __sk_buff *ctx, __u32 reason)
{
	note_drop(ctx, reason);
	return end(ctx, reason, TC_ACT_SHOT);
}

INLINE struct config *settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

/* The host's own addresses, each with the global one that stands for it towards containers: of ::1 another one (127.0.0.0/8
 * has no rows). In the row of :: and 0.0.0.0 is what stands for any. Without a global IPv6 address own_addresses6 has no
 * rows: IPv6 ends at this host then. */
MAP(BPF_MAP_TYPE_HASH, own_addresses, addr_t, addr_t, 1024, BPF_F_NO_PREALLOC);

LOOKUP addr_t *own_address(const addr_t *addr)
{
	return bpf_map_lookup_elem(&own_addresses, addr);
}

#ifdef OVERLACE_IPV6
/* Whether hosts outside can answer this one. */
LOOKUP int goes_outside(void)
{
	addr_t any = {};

	return own_address(&any) != 0;
}
#endif

LOOKUP struct endpoint *endpoint_of(__u32 vni, const addr_t *addr)
{
	struct address_key key = { .vni = vni, .addr = *addr };

	return bpf_map_lookup_elem(&endpoints, &key);
}

LOOKUP struct route *route_of(__u32 vni, const addr_t *addr)
{
	struct route_key key = { .prefix = 32 + ADDR_BITS, .vni = vni, .addr = *addr };

	return bpf_map_lookup_elem(&routes, &key);
}

/* The endpoint of the network that routes for the address, if one does. */
LOOKUP struct endpoint *router_of(__u32 vni, const addr_t *addr)
{
	struct route *r = route_of(BEHIND | vni, addr);

	return r ? endpoint_of(vni, &r->hop) : 0;
}

LOOKUP int is_overlay(const addr_t *addr)
{
	struct subnet_key key = { .prefix = ADDR_BITS, .addr = *addr };

	return bpf_map_lookup_elem(&subnets, &key) != 0;
}

INLINE __u32 idle_of(__u8 proto)
{
	return proto == PROTO_SCTP ? SCTP_IDLE : UDP_IDLE;
}

INLINE __u32 now(void)
{
	return bpf_ktime_get_coarse_ns() >> 30;
}
