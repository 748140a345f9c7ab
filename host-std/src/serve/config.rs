//! Configuration of a server: the same options from a command line and from a TOML file.

mod address;
mod check;
mod choices;
mod error;
mod file;
mod size;

use std::path::PathBuf;

use blk_core::storage::CacheMode;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error_policy::OnError;
use super::names;
use crate::backend::IoEngine;
use crate::confine::Sandbox;

pub(super) use choices::QUEUES_MAX;

pub use address::Address;
pub use choices::{AhciMessages, DeviceKind, IdeChip, IdeMode, ImageFormat, LogFormat};
pub use error::ConfigError;
pub use size::Size;

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

/// A device and its socket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "the options of a device, below [[device]]"
)]
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

/// An image and how it is served.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "the options of an image, below [[device.image]], such as path = \"disk.img\""
)]
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
    /// Make the image, or extend it, to this size. It is never made smaller: one that is larger is served as it is, with a
    /// warning, since a server is started with the same options after its image has grown.
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
    /// File of the records that devices keep beside the disk's contents: a path; `auto`, beside the image where that can be; `off`, and
    /// without it, none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<PathBuf>,
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
    /// Where the image with this index is found.
    #[must_use]
    pub fn address(&self, index: usize) -> Address {
        self.lun.unwrap_or(Address { target: 0, lun: u16::try_from(index).unwrap_or(u16::MAX) })
    }

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
            state: None,
            record: None,
            fault: None,
        }
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

impl DeviceConfig {
    /// Its name, as the device with this index.
    #[must_use]
    pub fn name(&self, index: usize) -> String {
        self.name.clone().unwrap_or_else(|| format!("disk{index}"))
    }
}

#[cfg(test)]
mod tests;
