//! A machine's disk: how it is stored, and how it is given to QEMU.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use super::machine::run;

/// How a disk's image is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Plain bytes.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl Format {
    /// QEMU's word.
    pub fn word(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// How a disk is given to QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// `-blockdev node-name=fmt-NAME` and `-device virtio-blk-pci,id=NAME`.
    Device,
    /// The same in an iothread of its own.
    Iothread,
    /// The same with a `throttle` filter `thr-NAME` above the format node.
    Throttle,
    /// The same with a `copy-on-read` filter `cor-NAME` above the format node.
    CopyOnRead,
    /// `-device scsi-hd,id=NAME` on a virtio-scsi controller.
    Scsi,
    /// `-drive if=none,id=drive-NAME` and `-device virtio-blk-pci,id=NAME`: node names that QEMU makes up.
    DriveAndDevice,
    /// `-drive if=virtio,id=NAME`: neither a device id nor a node name.
    Drive,
}

/// One disk of a machine.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The device's id.
    pub name: String,
    /// The image; made at the start of the machine where it is not there.
    pub file: PathBuf,
    /// Bytes that the guest sees.
    pub size: u64,
    /// How it is stored.
    pub format: Format,
    attach: Attach,
    backing: Option<(PathBuf, Format)>,
}

impl Disk {
    /// A qcow2 disk on `-blockdev` and `-device`.
    pub fn qcow2(name: &str, size: u64) -> Disk {
        let (name, file) = (name.to_owned(), PathBuf::new());
        Disk { name, file, size, format: Format::Qcow2, attach: Attach::Device, backing: None }
    }

    /// A raw disk on `-blockdev` and `-device`. Sizes are multiples of 512.
    pub fn raw(name: &str, size: u64) -> Disk {
        Disk { format: Format::Raw, ..Disk::qcow2(name, size) }
    }

    /// Another way to give it to QEMU.
    pub fn attach(self, attach: Attach) -> Disk {
        Disk { attach, ..self }
    }

    /// An existing or wished-for file outside of the machine's folder.
    pub fn at(self, file: &Path) -> Disk {
        Disk { file: file.to_owned(), ..self }
    }

    /// A backing file, for a qcow2 disk that is made new.
    pub fn backed_by(self, file: &Path, format: Format) -> Disk {
        Disk { backing: Some((file.to_owned(), format)), ..self }
    }

    /// The node that holds the format, where the test gave it a name.
    pub fn format_node(&self) -> String {
        format!("fmt-{}", self.name)
    }

    pub(super) fn create(&self) {
        if self.format == Format::Raw {
            let made = File::create(&self.file).and_then(|file| file.set_len(self.size));
            return made.unwrap_or_else(|error| panic!("Cannot make {}: {error}", self.file.display()));
        }
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2"]);
        if let Some((file, format)) = &self.backing {
            command.arg("-b").arg(file).args(["-F", format.word()]);
        }
        run(command.arg(&self.file).arg(self.size.to_string()));
    }

    pub(super) fn arguments(&self) -> Vec<String> {
        let (name, format, file) = (&self.name, self.format.word(), self.file.display());
        let blockdev = format!("driver={format},node-name=fmt-{name},file.driver=file,file.filename={file}");
        let virtio = |drive: &str| format!("virtio-blk-pci,id={name},drive={drive}");
        let pairs: Vec<(&str, String)> = match self.attach {
            Attach::Device => vec![("-blockdev", blockdev), ("-device", virtio(&self.format_node()))],
            Attach::Iothread => vec![
                ("-object", format!("iothread,id=io-{name}")),
                ("-blockdev", blockdev),
                ("-device", format!("{},iothread=io-{name}", virtio(&self.format_node()))),
            ],
            Attach::Throttle => vec![
                ("-object", format!("throttle-group,id=group-{name}")),
                ("-blockdev", blockdev),
                (
                    "-blockdev",
                    format!("driver=throttle,node-name=thr-{name},throttle-group=group-{name},file=fmt-{name}"),
                ),
                ("-device", virtio(&format!("thr-{name}"))),
            ],
            Attach::CopyOnRead => vec![
                ("-blockdev", blockdev),
                ("-blockdev", format!("driver=copy-on-read,node-name=cor-{name},file=fmt-{name}")),
                ("-device", virtio(&format!("cor-{name}"))),
            ],
            Attach::Scsi => {
                let mut pairs = self.bus();
                pairs.push(("-blockdev", blockdev));
                pairs.push(("-device", format!("scsi-hd,id={name},bus=bus-{name}.0,drive=fmt-{name}")));
                pairs
            }
            Attach::DriveAndDevice => vec![
                ("-drive", format!("if=none,id=drive-{name},format={format},file={file}")),
                ("-device", virtio(&format!("drive-{name}"))),
            ],
            Attach::Drive => vec![("-drive", format!("if=virtio,id={name},format={format},file={file}"))],
        };
        words(pairs)
    }

    /// What of it stays in a machine from which it was unplugged.
    pub(super) fn remains(&self) -> Vec<String> {
        words(self.bus())
    }

    fn bus(&self) -> Vec<(&'static str, String)> {
        match self.attach {
            Attach::Scsi => vec![("-device", format!("virtio-scsi-pci,id=bus-{}", self.name))],
            _ => Vec::new(),
        }
    }

    /// How the human monitor's `qemu-io` names the device.
    pub(super) fn device(&self) -> String {
        match self.attach {
            Attach::Drive => self.name.clone(),
            Attach::Scsi => format!("-d /machine/peripheral/{}", self.name),
            _ => format!("-d /machine/peripheral/{}/virtio-backend", self.name),
        }
    }
}

fn words(pairs: Vec<(&str, String)>) -> Vec<String> {
    pairs.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect()
}
