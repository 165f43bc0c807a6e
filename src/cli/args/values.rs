//! Values as a person writes them, and what is said of those that are none.

use std::path::PathBuf;

use crate::{
    api::quantity,
    config,
    engine::bitmaps::is_granularity,
    ids::{DiskName, PointId},
};

/// A disk of a point and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The disk.
    pub disk: DiskName,
    /// The file.
    pub path: PathBuf,
}

/// A point as a person names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PointName {
    /// The newest one of a guest.
    Latest,
    /// This one.
    Id(PointId),
}

impl std::str::FromStr for PointName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("latest") {
            return Ok(Self::Latest);
        }
        text.parse().map(Self::Id).map_err(|error: crate::ids::ParseIdError| format!("{error}, or latest"))
    }
}

pub(super) fn target(text: &str) -> Result<Target, String> {
    let example = "write DISK=PATH, such as disk0=/var/lib/machines/disk0.qcow2";
    // Names of disks and of files may hold the sign, too. The first one before what begins as a path ends the disk's name; where
    // none does, the first one: QEMU takes no id with such a sign, a file is called as one likes.
    let before_path = ["/", "./", "../"].iter().filter_map(|path| text.find(&format!("={path}"))).min();
    let (disk, path) = match before_path {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => text.split_once('=').ok_or(example)?,
    };
    if path.is_empty() {
        return Err(example.to_owned());
    }
    let disk = disk.parse().map_err(|error: crate::ids::ParseIdError| error.to_string())?;
    Ok(Target { disk, path: path.into() })
}

pub(super) fn guest_name(text: &str) -> Result<String, String> {
    if config::is_guest_name(text) {
        return Ok(text.to_owned());
    }
    Err("write lower case letters, digits, - and dots, such as db-1".to_owned())
}

pub(super) fn rate(text: &str) -> Result<u64, String> {
    match quantity::parse(text) {
        Ok(0) | Err(_) => Err(format!("{text:?} is not a rate: write bytes per second such as 50Mi, 100M or 52428800")),
        Ok(rate) => Ok(rate),
    }
}

/// As a rate, and 0 for none.
pub(super) fn rate_or_none(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { rate(text).map_err(|error| format!("{error}, or 0 for no limit")) }
}

pub(super) fn granularity(text: &str) -> Result<u32, String> {
    let parsed = quantity::parse(text).ok().and_then(|bytes| u32::try_from(bytes).ok());
    parsed
        .filter(|bytes| is_granularity(*bytes))
        .ok_or_else(|| format!("{text:?} is no granularity: write a power of two from 512 to 2Gi, such as 64Ki"))
}
