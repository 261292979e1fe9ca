// SPDX-License-Identifier: Apache-2.0
/* Gives a test run's frame the tunnel key that the kernel's vxlan device would have found, and passes it on: the network
 * in cb[3], the host it came from in cb[4], host order. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} next SEC(".maps");

SEC("tc")
int keyed(struct __sk_buff *ctx)
{
	/* what is read as the sender's address is written as one's own */
	struct bpf_tunnel_key key = { .tunnel_id = ctx->cb[3], .local_ipv4 = ctx->cb[4] };

	if (bpf_skb_set_tunnel_key(ctx, &key, sizeof(key), 0))
		return TC_ACT_STOLEN;
	bpf_tail_call(ctx, &next, 0);
	return TC_ACT_STOLEN; /* nobody to pass it to */
}

char LICENSE[] SEC("license") = "GPL";
