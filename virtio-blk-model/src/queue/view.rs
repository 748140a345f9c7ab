//! What a queue sees of its device, and what it says of its requests.

use blk_core::order::GuestCache;

use crate::command::Command;
use crate::wire::{Features, Status};

/// Snapshot of the device state that a queue needs to take a request. It is copied for each.
///
/// Where queues have threads of their own, the device publishes a new snapshot with a higher epoch. The change is complete when
/// every queue [is quiet](super::Queue::is_quiet) in that epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct DeviceView {
    /// The negotiated features.
    #[cfg_attr(feature = "defmt", defmt(Debug2Format))]
    pub features: Features,
    /// What the driver was told about the write cache.
    pub cache: GuestCache,
    /// Whether changes are refused, by configuration.
    pub read_only: bool,
    /// Requests may be taken: the driver is ready and no change is under way.
    pub open: bool,
    /// Counts the changes.
    pub epoch: u32,
}

/// Result of a poll of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct QueueProgress {
    /// The driver wants a used-buffer interrupt.
    pub interrupt: bool,
    /// The budget ran out: poll again. Otherwise poll when the driver notifies or the storage has a completion.
    pub again: bool,
}

/// Receives a queue's events, for statistics. `()` ignores them.
pub trait Observer {
    /// A request was taken that moves `bytes` bytes of data. `None` if it was refused before it was decoded: its header is too
    /// short, or it is a change of a read-only disk.
    fn began(&mut self, _command: Option<Command>, _bytes: u64) {}

    /// A request was answered.
    fn ended(&mut self, _status: Status) {}
}

impl Observer for () {}
