//! Layouts in guest memory and configuration space, and nothing else: VIRTIO 1.3, 5.6.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian as le};

/// The device type: 5.6.1.
pub const DEVICE_SCSI: u32 = 8;

bitflags! {
    /// Feature bits that the device knows: VIRTIO 1.3, 5.6.3 and 6.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
    pub struct Features: u64 {
        /// Units that come and go are reported.
        const HOTPLUG = 1 << 1;
        /// Changes of a unit's parameters are reported.
        const CHANGE = 1 << 2;
        /// Buffers may be cut in any way. Always so in a modern device.
        const ANY_LAYOUT = 1 << 27;
        /// Indirect descriptors.
        const INDIRECT_DESC = 1 << 28;
        /// Notifications and interrupts by ring index.
        const EVENT_IDX = 1 << 29;
        /// Not a legacy device or driver.
        const VERSION_1 = 1 << 32;
        /// A single queue may be reset.
        const RING_RESET = 1 << 40;
    }
}

/// Its encoding is its bits.
#[cfg(feature = "snapshot")]
impl postcard::experimental::max_size::MaxSize for Features {
    const POSTCARD_MAX_SIZE: usize = u64::POSTCARD_MAX_SIZE;
}

#[cfg(feature = "defmt")]
impl defmt::Format for Features {
    fn format(&self, formatter: defmt::Formatter<'_>) {
        defmt::write!(formatter, "{}", defmt::Debug2Format(self));
    }
}

/// The readable beginning of a request, up to its command block: `struct virtio_scsi_req_cmd` (5.6.6.1).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RequestHead {
    /// Whom it is for.
    pub lun: [u8; 8],
    /// The driver's name for it, which task management uses.
    pub id: le::U64,
    /// [`attribute`].
    pub task_attr: u8,
    /// Command priority.
    pub prio: u8,
    /// Command reference number.
    pub crn: u8,
}

const _: () = assert!(size_of::<RequestHead>() == 19);

/// Values of [`RequestHead::task_attr`].
pub mod attribute {
    /// VIRTIO_SCSI_S_SIMPLE.
    pub const SIMPLE: u8 = 0;
    /// VIRTIO_SCSI_S_ORDERED.
    pub const ORDERED: u8 = 1;
    /// VIRTIO_SCSI_S_HEAD.
    pub const HEAD: u8 = 2;
    /// VIRTIO_SCSI_S_ACA.
    pub const ACA: u8 = 3;
}

/// The writable beginning of a request, up to its sense data (5.6.6.1).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResponseHead {
    /// Bytes of sense data that were written.
    pub sense_len: le::U32,
    /// Bytes of the data buffer that were not used.
    pub residual: le::U32,
    /// Status qualifier.
    pub status_qualifier: le::U16,
    /// SCSI status.
    pub status: u8,
    /// [`Response`].
    pub response: u8,
}

const _: () = assert!(size_of::<ResponseHead>() == 12);

/// Response code of a request: 5.6.6.1 and 5.6.6.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum Response {
    /// OK, and FUNCTION COMPLETE of a task management function.
    Ok = 0,
    /// The command needs more data than the buffers hold.
    Overrun = 1,
    /// Cancelled by ABORT TASK or its like.
    Aborted = 2,
    /// There is no such target.
    BadTarget = 3,
    /// Cancelled by a reset.
    Reset = 4,
    /// Another error of host or driver.
    Failure = 9,
    /// FUNCTION SUCCEEDED: the task that was asked for is there.
    FunctionSucceeded = 10,
    /// FUNCTION REJECTED.
    FunctionRejected = 11,
    /// The target has no such logical unit.
    IncorrectLun = 12,
}

/// `struct virtio_scsi_ctrl_tmf`, without its response (5.6.6.2).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Management {
    /// [`control::TASK_MANAGEMENT`].
    pub kind: le::U32,
    /// [`function`].
    pub subtype: le::U32,
    /// Whom it is for.
    pub lun: [u8; 8],
    /// The request that it is about.
    pub id: le::U64,
}

const _: () = assert!(size_of::<Management>() == 24);

/// The readable part of `struct virtio_scsi_ctrl_an` (5.6.6.2).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Notification {
    /// [`control::NOTIFICATION_QUERY`] or [`control::NOTIFICATION_SUBSCRIBE`].
    pub kind: le::U32,
    /// Whom it is for.
    pub lun: [u8; 8],
    /// What the driver would like to hear of.
    pub requested: le::U32,
}

const _: () = assert!(size_of::<Notification>() == 16);

/// Types of requests in the control queue.
pub mod control {
    /// VIRTIO_SCSI_T_TMF.
    pub const TASK_MANAGEMENT: u32 = 0;
    /// VIRTIO_SCSI_T_AN_QUERY.
    pub const NOTIFICATION_QUERY: u32 = 1;
    /// VIRTIO_SCSI_T_AN_SUBSCRIBE.
    pub const NOTIFICATION_SUBSCRIBE: u32 = 2;
}

/// Task management functions, VIRTIO_SCSI_T_TMF_...
pub mod function {
    #![allow(missing_docs, reason = "each is named as in SAM-5, task management functions")]
    pub const ABORT_TASK: u32 = 0;
    pub const ABORT_TASK_SET: u32 = 1;
    pub const CLEAR_ACA: u32 = 2;
    pub const CLEAR_TASK_SET: u32 = 3;
    pub const I_T_NEXUS_RESET: u32 = 4;
    pub const LOGICAL_UNIT_RESET: u32 = 5;
    pub const QUERY_TASK: u32 = 6;
    pub const QUERY_TASK_SET: u32 = 7;
}

/// `struct virtio_scsi_event` (5.6.6.3).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EventData {
    /// [`event`].
    pub event: le::U32,
    /// Which unit.
    pub lun: [u8; 8],
    /// More of it.
    pub reason: le::U32,
}

const _: () = assert!(size_of::<EventData>() == 16);

/// Values of [`EventData::event`], and of its reason.
pub mod event {
    /// VIRTIO_SCSI_T_NO_EVENT.
    pub const NONE: u32 = 0;
    /// VIRTIO_SCSI_T_TRANSPORT_RESET.
    pub const TRANSPORT_RESET: u32 = 1;
    /// VIRTIO_SCSI_T_PARAM_CHANGE.
    pub const PARAMETER_CHANGE: u32 = 3;
    /// VIRTIO_SCSI_T_EVENTS_MISSED, beside any of them.
    pub const MISSED: u32 = 1 << 31;
    /// VIRTIO_SCSI_EVT_RESET_RESCAN, a reason of [`TRANSPORT_RESET`].
    pub const RESCAN: u32 = 1;
    /// VIRTIO_SCSI_EVT_RESET_REMOVED, a reason of [`TRANSPORT_RESET`].
    pub const REMOVED: u32 = 2;
}

/// `struct virtio_scsi_config` (5.6.4).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConfigSpace {
    /// Request queues.
    pub num_queues: le::U32,
    /// Most data segments in a command.
    pub seg_max: le::U32,
    /// Largest transfer that is worth while, in 512-byte sectors.
    pub max_sectors: le::U32,
    /// Most commands of one unit at a time.
    pub cmd_per_lun: le::U32,
    /// Bytes of an event.
    pub event_info_size: le::U32,
    /// Most bytes of sense data. Writable.
    pub sense_size: le::U32,
    /// Bytes of a request's command block. Writable.
    pub cdb_size: le::U32,
    /// Highest channel.
    pub max_channel: le::U16,
    /// Highest target.
    pub max_target: le::U16,
    /// Highest logical unit number.
    pub max_lun: le::U32,
}

const _: () = assert!(size_of::<ConfigSpace>() == 36);
