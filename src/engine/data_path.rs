//! Which way a run's data takes: QEMU writes the repository's files, or files in the scratch folder that are carried to the
//! repository once they are whole. Pure: what is known of repository and scratch folder comes in as values.
//!
//! A file system that hangs, or fills up, would stop the guest whose QEMU writes to it (measured): so `Direct` is for local ones.

use serde::{Deserialize, Serialize};

use crate::sentence::bytes;

/// What is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RequestedDataPath {
    /// The shortest one that is safe for the guest.
    #[default]
    Auto,
    /// Straight into the repository.
    Direct,
    /// By way of the scratch folder.
    Staged,
}

/// The way that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataPath {
    /// QEMU writes the repository's files.
    Direct,
    /// QEMU writes files in the scratch folder.
    Staged,
}

/// Why there is no safe way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unsafe {
    /// The direct one was asked for.
    #[error(
        "it is not on a local file system that keeps allocated space, such as ext4, xfs or btrfs on disks of this host, and a copy \
         straight to it could stop the guest when it hangs or fills up; use data path Auto or Staged"
    )]
    NotLocal,
    /// Nobody has said where to stage.
    #[error(
        "the copy is to be staged in a local folder, where neither a hang nor a full disk of the repository reaches the guest, and \
         host.toml names no [scratch] folder; name one, or use data path Auto and a repository on a local file system such as \
         ext4, xfs or btrfs on disks of this host"
    )]
    ScratchMissing,
    /// There is too little room.
    #[error(
        "the copy is to be staged in the scratch folder, of which {} may be used now, and it can need {}; raise the budget in \
         host.toml, make room on its file system, or wait until other runs have ended", bytes(*room), bytes(*needed)
    )]
    ScratchFull {
        /// Bytes there are.
        room: u64,
        /// Bytes it can need.
        needed: u64,
    },
}

/// The way. `local`: the repository is on a file system that keeps what is allocated, on disks of this host.
///
/// # Errors
/// Why there is no safe one.
pub fn decide(requested: RequestedDataPath, local: bool) -> Result<DataPath, Unsafe> {
    match requested {
        RequestedDataPath::Direct if !local => Err(Unsafe::NotLocal),
        RequestedDataPath::Direct => Ok(DataPath::Direct),
        RequestedDataPath::Auto if local => Ok(DataPath::Direct),
        RequestedDataPath::Auto | RequestedDataPath::Staged => Ok(DataPath::Staged),
    }
}

/// What is left of the scratch folder, in bytes, once a staged run that can need `needed` has its share of `room`: what may be
/// taken now, where there is a folder.
///
/// # Errors
/// Why nothing can be staged.
pub fn left(needed: u64, room: Option<u64>) -> Result<u64, Unsafe> {
    let room = room.ok_or(Unsafe::ScratchMissing)?;
    room.checked_sub(needed).ok_or(Unsafe::ScratchFull { room, needed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineError;

    #[test]
    fn the_way_is_direct_on_a_local_file_system_and_staged_elsewhere_or_on_request() {
        use RequestedDataPath::{Auto, Direct, Staged};
        for (requested, local, way) in [
            (Auto, true, Ok(DataPath::Direct)),
            (Auto, false, Ok(DataPath::Staged)),
            (Direct, true, Ok(DataPath::Direct)),
            (Direct, false, Err(Unsafe::NotLocal)),
            (Staged, true, Ok(DataPath::Staged)),
            (Staged, false, Ok(DataPath::Staged)),
        ] {
            assert_eq!(decide(requested, local), way, "{requested:?} {local}");
        }
    }

    #[test]
    fn who_asks_for_staging_is_told_where_to_and_not_that_it_is_a_danger() {
        let text = Unsafe::ScratchMissing.to_string();
        assert!(text.starts_with("the copy is to be staged") && text.contains("[scratch]"), "{text}");
        let text = Unsafe::ScratchFull { room: 1 << 20, needed: 1 << 30 }.to_string();
        assert!(text.contains("1.00 MiB may be used now, and it can need 1.00 GiB"), "{text}");
    }

    #[test]
    fn a_full_repository_is_told_in_sizes_for_people_with_the_reserves_share() {
        let (available, needed, reserve, missing) = (1 << 30, 3 << 30, 256 << 20, 2 << 30);
        let full = EngineError::NoSpace { path: "/r".into(), available, needed, reserve, missing }.to_string();
        assert!(
            full.contains("has 1.00 GiB free; the backup can need 3.00 GiB, 256.00 MiB of it the host's reserve"),
            "{full}"
        );
    }

    #[test]
    fn nothing_is_staged_without_a_folder_that_has_the_room() {
        assert_eq!(left(10, Some(12)), Ok(2));
        assert_eq!(left(10, Some(10)), Ok(0));
        assert_eq!(left(10, Some(9)), Err(Unsafe::ScratchFull { room: 9, needed: 10 }));
        assert_eq!(left(0, None), Err(Unsafe::ScratchMissing));
    }
}
