//! How much a backup can take at most. Pure. Without fleecing a full target makes the guest's own writes fail, so the
//! most that can be needed is known, and allocated, before a run starts.

use crate::chain::next::Base;

/// Cluster size of every stored image in bytes.
pub const CLUSTER: u64 = 65536;

/// The most bytes that the qcow2 file of a disk of `virtual_size` bytes can take: all of its clusters and the metadata
/// that leads to them.
///
/// Allocated sizes are no help: a file system that compresses says less than is read, sixteen blocks of 4 KiB can
/// spread over sixteen clusters, and one cluster of a compressed qcow2 becomes many.
pub fn upper_bound(virtual_size: u64) -> u64 {
    bound_of(virtual_size, virtual_size)
}

/// The same where `copied` bytes of the disk are stored, in whole clusters, wherever they are.
pub fn bound_of(virtual_size: u64, copied: u64) -> u64 {
    let all = virtual_size.div_ceil(CLUSTER);
    let clusters = copied.div_ceil(CLUSTER).min(all);
    let l2_tables = all.div_ceil(CLUSTER / 8);
    let l1_clusters = (l2_tables * 8).div_ceil(CLUSTER);
    let l2_tables = l2_tables.min(clusters);
    // 16 bits for each cluster, and QEMU may move the refcount table once it grows: the old one stays until then.
    let counted = clusters + l2_tables + l1_clusters + 1;
    let refcount_blocks = counted.div_ceil(CLUSTER / 2) + 1;
    let refcount_tables = 2 * (refcount_blocks * 8).div_ceil(CLUSTER);
    (counted + refcount_blocks + refcount_tables) * CLUSTER
}

/// The most bytes that a disk's file can take: a full, or an increment on `base` as its checkpoint stands now. What the guest
/// writes until the instant comes on top, and is allocated once it is known.
pub fn bound(virtual_size: u64, base: Option<&Base>) -> u64 {
    // Twice the granule of the sentinel: where the disk was resized, the base's and the new end.
    base.map_or_else(|| upper_bound(virtual_size), |base| bound_of(virtual_size, base.dirty + 2 * CLUSTER))
}

/// What is wrong with the space there is, if anything: the bytes missing.
pub fn missing(bounds: impl Iterator<Item = u64>, reserve: u64, available: u64) -> Option<u64> {
    let needed = bounds.fold(reserve, u64::saturating_add);
    needed.checked_sub(available).filter(|missing| *missing > 0)
}

/// Bytes of the scratch folder that a run may take: what others were promised counts against the budget, and what they have
/// not taken of it yet against what is free, or all of them together would use up the reserve.
pub fn scratch_room(budget: u64, free: u64, promised: u64, not_taken: u64) -> u64 {
    budget.saturating_sub(promised).min(free.saturating_sub(not_taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_and_not_taken_yet_is_not_free() {
        assert_eq!(scratch_room(100, 50, 0, 0), 50);
        assert_eq!(scratch_room(40, 50, 0, 0), 40);
        assert_eq!(scratch_room(100, 50, 30, 30), 20);
        assert_eq!(scratch_room(100, 20, 30, 0), 20);
        assert_eq!(scratch_room(100, 20, 30, 30), 0);
        assert_eq!(scratch_room(20, 50, 30, 30), 0);
    }

    #[test]
    fn the_bound_is_never_below_what_qemu_needs_for_a_full_image() {
        let dir = tempfile::tempdir().unwrap();
        for size in [512u64, 65536, 10_000_384, 1 << 30, (1 << 30) + 512] {
            let path = dir.path().join("full.qcow2");
            let made = std::process::Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-o", "cluster_size=65536,preallocation=falloc"])
                .arg(&path)
                .arg(size.to_string())
                .status()
                .unwrap();
            assert!(made.success());
            let needed = std::fs::metadata(&path).unwrap().len();
            let bound = upper_bound(size);
            assert!(bound >= needed, "{size}: {bound} < {needed}");
            assert!(bound <= needed + needed / 50 + 8 * CLUSTER, "{size}: {bound} is far above {needed}");
        }
    }

    #[test]
    fn an_increment_is_bounded_by_what_it_copies() {
        let disk = 1 << 40;
        assert_eq!(bound_of(disk, disk), upper_bound(disk));
        // 64 MiB anywhere on 1 TiB: each of its 1024 clusters may need a table of its own.
        assert!((128 << 20..140 << 20).contains(&bound_of(disk, 64 << 20)));
        assert!(bound_of(disk, 0) < 1 << 20);
        assert_eq!(bound_of(disk, 2 * disk), upper_bound(disk), "no more than there is");
    }

    #[test]
    fn missing_bytes_are_counted_with_the_reserve() {
        assert_eq!(missing([10, 20].into_iter(), 5, 35), None);
        assert_eq!(missing([10, 20].into_iter(), 5, 34), Some(1));
        assert_eq!(missing([u64::MAX, 1].into_iter(), 5, 0), Some(u64::MAX));
    }
}
