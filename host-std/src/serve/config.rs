//! Configuration of a server: the same options from a command line and from a TOML file.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use blk_core::storage::CacheMode;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error_policy::OnError;
use super::names;
use crate::backend::IoEngine;
use crate::confine::Sandbox;
use crate::fault::Plan;
use crate::server::vfio_user::devices;

/// An option that cannot be. The text names where it was given, the option and the remedy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{place}: {what}; {remedy}")]
pub struct ConfigError {
    /// File and table, or option of the command line.
    pub place: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl ConfigError {
    pub(super) fn new(place: impl fmt::Display, what: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self { place: place.to_string(), what: what.to_string(), remedy: remedy.to_string() }
    }
}

/// What a process serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where the control socket is made; none without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<PathBuf>,
    /// The form of the log.
    #[serde(default)]
    pub log_format: LogFormat,
    /// Whether the process is confined once it has started.
    #[serde(default)]
    pub sandbox: Sandbox,
    /// The user, and the group, that it becomes: `NAME` or `NAME:GROUP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Permissions of the devices' sockets, in octal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_mode: Option<String>,
    /// Group of the devices' sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_group: Option<String>,
    /// Folders whose images may be plugged into a confined process.
    #[serde(rename = "hotplug-folder", default, skip_serializing_if = "Vec::is_empty")]
    pub hotplug_folders: Vec<PathBuf>,
    /// The devices.
    #[serde(rename = "device", default)]
    pub devices: Vec<DeviceConfig>,
}

/// The form of the log, on standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// A JSON object on each line.
    Json,
}

/// A device and its socket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeviceConfig {
    /// By which the control socket and the log call it; by default disk0, disk1 and so on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: DeviceKind,
    /// Where its socket is made: a vhost-user socket, or that of vfio-user for a PCI device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Its socket's descriptor, listening or connected, from a supervisor. With neither this nor `socket` it is the next one
    /// of those that a service manager handed over (`LISTEN_FDS`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// Request queues; a virtio-blk device has a thread for each.
    #[serde(default = "one")]
    pub queues: u16,
    /// Most entries of a queue.
    #[serde(default = "queue_size")]
    pub queue_size: u16,
    /// Which IDE controller it is.
    #[serde(default)]
    pub ide_chip: IdeChip,
    /// How an IDE controller is found.
    #[serde(default)]
    pub ide_mode: IdeMode,
    /// How an AHCI controller interrupts.
    #[serde(default)]
    pub ahci_messages: AhciMessages,
    /// Whether the device is over when its first client leaves.
    #[serde(default)]
    pub once: bool,
    /// Its image, or the images of its logical units.
    #[serde(rename = "image", default)]
    pub images: Vec<ImageConfig>,
}

const fn one() -> u16 {
    1
}

const fn queue_size() -> u16 {
    256
}

/// Which PCI IDE controller it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IdeChip {
    /// 8086:7010.
    #[default]
    Piix3,
    /// 8086:7111, which has Ultra DMA.
    Piix4,
}

/// How a PCI IDE controller is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IdeMode {
    /// By its BARs, with INTA.
    #[default]
    Native,
    /// At 1F0h, 3F6h, 170h and 376h, where firmware or a guest puts its BARs.
    Compatibility,
}

/// The messages of an AHCI controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AhciMessages {
    /// One for each port, by MSI-X; MSI and INTA are there beside it.
    #[default]
    PerPort,
    /// One for all ports, by MSI, or INTA: as an ICH9's.
    One,
}

/// What a device is to its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// A virtio-blk disk, over vhost-user.
    VirtioBlk,
    /// A virtio-scsi host with disks, over vhost-user.
    VirtioScsi,
    /// An AHCI controller with disks, over vfio-user.
    Ahci,
    /// A PCI IDE controller with disks, over vfio-user.
    Ide,
    /// A virtio-blk disk, over vfio-user.
    VirtioBlkPci,
    /// A virtio-scsi host with disks, over vfio-user.
    VirtioScsiPci,
}

impl DeviceKind {
    /// Its name in options.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::VirtioBlk => "virtio-blk",
            Self::VirtioScsi => "virtio-scsi",
            Self::Ahci => "ahci",
            Self::Ide => "ide",
            Self::VirtioBlkPci => "virtio-blk-pci",
            Self::VirtioScsiPci => "virtio-scsi-pci",
        }
    }

    /// Whether it is a PCI device, and served over vfio-user.
    #[must_use]
    pub const fn is_pci(self) -> bool {
        !matches!(self, Self::VirtioBlk | Self::VirtioScsi)
    }

    /// Whether its images are logical units with addresses.
    #[must_use]
    pub const fn has_units(self) -> bool {
        matches!(self, Self::VirtioScsi | Self::VirtioScsiPci)
    }

    /// Most request queues; 1 where there are none to choose.
    const fn queues_max(self) -> u16 {
        match self {
            Self::VirtioBlk => 64,
            Self::VirtioScsi => 62,
            Self::VirtioBlkPci | Self::VirtioScsiPci => devices::QUEUES_MAX,
            Self::Ahci | Self::Ide => 1,
        }
    }

    /// Most images, and why no more.
    const fn images_max(self) -> (usize, &'static str) {
        match self {
            Self::VirtioBlk | Self::VirtioBlkPci => {
                (1, "a virtio-blk device has one; use virtio-scsi, or a device for each")
            }
            Self::VirtioScsi | Self::VirtioScsiPci => {
                (devices::UNITS_MAX, "a virtio-scsi device has 16 at most")
            }
            Self::Ahci => (devices::AHCI_PORTS, "an AHCI controller has 6 ports"),
            Self::Ide => (devices::IDE_DRIVES, "an IDE controller has 4 drives"),
        }
    }
}

/// An image and how it is served.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ImageConfig {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// The cache mode.
    #[serde(default = "default_cache", with = "cache")]
    pub cache: CacheMode,
    /// Refuse writes.
    #[serde(default)]
    pub readonly: bool,
    /// The serial that the guest reads: 20 bytes at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// What a failed read leads to.
    #[serde(default = "default_rerror")]
    pub rerror: OnError,
    /// What a failed write leads to.
    #[serde(default = "default_werror")]
    pub werror: OnError,
    /// What makes reads and writes.
    #[serde(default, with = "engine")]
    pub engine: IoEngine,
    /// Threads that read and write where the engine has some.
    #[serde(default = "workers")]
    pub workers: u16,
    /// Logical block in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logical_block: Option<u32>,
    /// Make the image, or extend it, to this size. It is never made smaller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// What is in the file. Unless it is said, a file with the header of another format is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<ImageFormat>,
    /// Where the unit is found behind a virtio-scsi host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lun: Option<Address>,
    /// Most operations a second. 0: none yet, to be set while it is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Operations that may be done at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_burst: Option<u64>,
    /// Most bytes a second, as `iops`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps: Option<Size>,
    /// Bytes that may be moved at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps_burst: Option<Size>,
    /// Most bytes of reads and writes in flight: what is beyond waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inflight: Option<Size>,
    /// Most memory of this process for the data of requests whose own memory the client does not share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_memory: Option<Size>,
    /// Record what the host is given into this file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<PathBuf>,
    /// Faults to inject: for tests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

const fn default_cache() -> CacheMode {
    CacheMode::WriteBack
}

const fn default_rerror() -> OnError {
    OnError::Report
}

const fn default_werror() -> OnError {
    OnError::Enospc
}

const fn workers() -> u16 {
    4
}

impl ImageConfig {
    /// An image with the defaults.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            cache: default_cache(),
            readonly: false,
            serial: None,
            rerror: default_rerror(),
            werror: default_werror(),
            engine: IoEngine::Auto,
            workers: workers(),
            logical_block: None,
            size: None,
            format: None,
            lun: None,
            iops: None,
            iops_burst: None,
            bps: None,
            bps_burst: None,
            inflight: None,
            private_memory: None,
            record: None,
            fault: None,
        }
    }
}

/// What is in an image's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The disk's sectors, one after the other, whatever they look like.
    Raw,
}

/// A size in bytes; as text with K, M, G or T for powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        if digits.is_empty() {
            return Err("give a number, for example 10G".into());
        }
        let shift = match text.get(digits.len()..).unwrap_or_default() {
            "" | "B" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            "T" | "TiB" => 40,
            _ => return Err("give bytes, or a number with K, M, G or T (powers of 1024)".into()),
        };
        let number: u64 = digits.parse().map_err(|_| "give a whole number, for example 10G")?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| "that is more than 2^64 bytes".into())
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of bytes, or a text such as \"10G\"")]
        enum Form {
            Bytes(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Bytes(bytes) => Ok(Self(bytes)),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

/// Target and logical unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Target.
    pub target: u8,
    /// Logical unit.
    pub lun: u16,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(target, lun)| {
            Some(Self {
                target: target.parse().ok()?,
                lun: lun.parse().ok().filter(|&lun: &u16| lun < 16384)?,
            })
        });
        parsed.ok_or_else(|| "give target:unit, from 0:0 to 255:16383".into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.target, self.lun)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A value by its name.
macro_rules! by_name {
    ($module:ident, $type:ty) => {
        mod $module {
            use super::*;

            pub(super) fn serialize<S: Serializer>(value: &$type, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(value.name())
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                let name = String::deserialize(deserializer)?;
                names::$module(&name).map_err(serde::de::Error::custom)
            }
        }
    };
}

by_name!(cache, CacheMode);
by_name!(engine, IoEngine);

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`], which names the file, the line and the key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            ConfigError::new(path.display(), format!("cannot be read: {error}"), "check --config")
        })?;
        Self::parse(&text, path)
    }

    /// Takes the text of a file apart.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().and_then(|span| Some(text.get(..span.start)?.matches('\n').count()));
            let place = line.map_or_else(
                || path.display().to_string(),
                |line| format!("{}:{}", path.display(), line + 1),
            );
            let text = line.and_then(|line| text.lines().nth(line)).unwrap_or_default();
            let at = if text.is_empty() { String::new() } else { format!(" (in: {})", text.trim()) };
            ConfigError::new(place, format!("{}{at}", error.message()), "the README lists the keys")
        })?;
        config.check(&path.display().to_string())?;
        Ok(config)
    }

    /// Checks what no single option shows. `place` is where they came from.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check(&self, place: &str) -> Result<(), ConfigError> {
        if self.devices.is_empty() {
            return Err(ConfigError::new(place, "no device", "give at least one [[device]]"));
        }
        let (mut names, mut paths, mut fds) = (HashSet::new(), HashSet::new(), HashSet::new());
        for (index, device) in self.devices.iter().enumerate() {
            let name = device.name(index);
            let place =
                if self.devices.len() == 1 { place.to_owned() } else { format!("{place}: device {name}") };
            if !names.insert(name.clone()) {
                return Err(ConfigError::new(
                    place,
                    "the name is used twice",
                    "give each device its own name",
                ));
            }
            let sockets = device.socket.iter().chain(self.control.iter().filter(|_| index == 0));
            let logs = device.images.iter().filter_map(|image| image.record.as_ref());
            for path in sockets.chain(logs) {
                if !paths.insert(path) {
                    let what = format!("{} is used twice", path.display());
                    return Err(ConfigError::new(place, what, "give each socket and recording its own path"));
                }
            }
            if let Some(fd) = device.fd.filter(|&fd| !fds.insert(fd)) {
                return Err(ConfigError::new(
                    place,
                    format!("fd {fd} is used twice"),
                    "give each device its own",
                ));
            }
            device.check(&place)?;
        }
        Ok(())
    }
}

impl DeviceConfig {
    /// Its name, as the device with this index.
    #[must_use]
    pub fn name(&self, index: usize) -> String {
        self.name.clone().unwrap_or_else(|| format!("disk{index}"))
    }

    fn check(&self, place: &str) -> Result<(), ConfigError> {
        let error = |what: String, remedy: &str| Err(ConfigError::new(place, what, remedy));
        if self.socket.is_some() && self.fd.is_some() {
            return error("both a socket and an fd".into(), "give one of them");
        }
        let queues_max = self.kind.queues_max();
        if !(1..=queues_max).contains(&self.queues) {
            let what = format!("queues: {} is not possible", self.queues);
            return error(what, &format!("give 1 to {queues_max}"));
        }
        if self.ide_chip != IdeChip::Piix3 && self.kind != DeviceKind::Ide {
            return error(format!("ide-chip with {}", self.kind.name()), "leave it out, or serve ide");
        }
        if self.ide_mode != IdeMode::Native && self.kind != DeviceKind::Ide {
            return error(format!("ide-mode with {}", self.kind.name()), "leave it out, or serve ide");
        }
        if self.ahci_messages != AhciMessages::PerPort && self.kind != DeviceKind::Ahci {
            return error(format!("ahci-messages with {}", self.kind.name()), "leave it out, or serve ahci");
        }
        if !self.queue_size.is_power_of_two() || !(2..=1024).contains(&self.queue_size) {
            let what = format!("queue-size: {} is not possible", self.queue_size);
            return error(what, "give a power of two from 2 to 1024");
        }
        if self.images.is_empty() {
            return error(
                "no image".into(),
                "give one: path = \"disk.img\" in [[device.image]], or --image disk.img",
            );
        }
        let (images_max, remedy) = self.kind.images_max();
        if self.images.len() > images_max {
            return error(format!("{} images", self.images.len()), remedy);
        }
        let mut addresses = HashSet::new();
        for (index, image) in self.images.iter().enumerate() {
            image.check(place, self.kind)?;
            if !addresses.insert(image.address(index)) {
                let what = format!("{}: lun {} is used twice", image.path.display(), image.address(index));
                return error(what, "give each image a lun of its own, such as lun=0:1");
            }
        }
        Ok(())
    }
}

impl ImageConfig {
    /// Where the image with this index is found.
    #[must_use]
    pub fn address(&self, index: usize) -> Address {
        self.lun.unwrap_or(Address { target: 0, lun: u16::try_from(index).unwrap_or(u16::MAX) })
    }

    /// The faults to inject.
    pub(super) fn faults(&self) -> Result<Option<Plan>, ConfigError> {
        let parse = |text: &String| {
            let place = format!("image {}: fault", self.path.display());
            text.parse()
                .map_err(|error| ConfigError::new(place, error, "see the documentation of host_std::fault"))
        };
        self.fault.as_ref().map(parse).transpose()
    }

    pub(super) fn check(&self, place: &str, kind: DeviceKind) -> Result<(), ConfigError> {
        let place = format!("{place}: image {}", self.path.display());
        self.faults()?;
        self.limits()?;
        for (option, size) in [("inflight", self.inflight), ("private-memory", self.private_memory)] {
            if size == Some(Size(0)) {
                let what = format!("{option}=0 would let nothing through");
                return Err(ConfigError::new(place, what, "leave it out, or give a size, such as 64M"));
            }
        }
        if self.lun.is_some() && !kind.has_units() {
            let what = format!("lun with {}", kind.name());
            return Err(ConfigError::new(place, what, "leave it out, or use virtio-scsi"));
        }
        if let Some(serial) = &self.serial
            && (serial.len() > 20 || !serial.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '))
        {
            let what = format!("serial: {serial:?} is not possible");
            return Err(ConfigError::new(place, what, "give 20 characters of ASCII at most"));
        }
        if self.readonly && (self.size.is_some() || self.record.is_some()) {
            let what = "readonly with size or record";
            return Err(ConfigError::new(
                place,
                what,
                "leave readonly out: neither does anything to an image that is only read",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
