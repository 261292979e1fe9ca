from etcd_bed import etcd_bed

__all__ = ["etcd_bed"]
