/* SPDX-License-Identifier: Apache-2.0 */
/* How large packets to each host may be, as the daemon measured it (network/paths.py). */
#pragma once
#include "packet.h"

/* What is known of the way to another host, where it is narrower than the device says (config.narrow). */
struct path {
	__u32 mtu; /* bytes, of the outer IP packet */
};

MAP(BPF_MAP_TYPE_HASH, paths, host_t, struct path, 16384, BPF_F_NO_PREALLOC);

/* Bytes the largest outer packet to `provider` may have. */
INLINE __u32 path_mtu(const struct config *cfg, host_t provider)
{
	if (cfg->narrow) {
		struct path *path = bpf_map_lookup_elem(&paths, &provider);

		if (path && path->mtu < cfg->underlay_mtu)
			return path->mtu;
	}
	return cfg->underlay_mtu;
}
