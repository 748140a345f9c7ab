//! Outcome of a task.

use crate::sense::SenseBytes;

/// A task has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Ended {
    /// The task's name.
    pub tag: u64,
    /// How.
    pub outcome: Outcome,
    /// Bytes moved between the guest's buffer and the device. What the buffer has beyond them is the residual.
    pub transferred_bytes: u64,
}

/// Outcome of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Outcome {
    /// GOOD.
    Good,
    /// CHECK CONDITION with this sense data.
    CheckCondition(SenseBytes),
    /// The command moves more data than the guest gave room for. Nothing was done. Transports have a word of
    /// their own for it (virtio-scsi: VIRTIO_SCSI_S_OVERRUN).
    Overrun,
    /// Task management or a reset took it away. Some of its data may have been written.
    Aborted,
}
