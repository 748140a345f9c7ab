//! Completion of a SCSI command: status, sense data, residual.

use super::ticket::Ticket;

/// SAM-5, status codes.
const GOOD: u8 = 0;

/// Sense data (SPC-4, sense data).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// Sense key.
    pub key: u8,
    /// Additional sense code, and its qualifier.
    pub code: (u8, u8),
    /// It is about a command that ended before.
    pub deferred: bool,
}

impl Sense {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let at = |index: usize| bytes.get(index).copied();
        let kind = at(0)? & 0x7f;
        let (key, code) = match kind {
            0x70 | 0x71 => (at(2)?, (at(12)?, at(13)?)),
            0x72 | 0x73 => (at(1)?, (at(2)?, at(3)?)),
            _ => return None,
        };
        Some(Self { key: key & 0xf, code, deferred: kind & 1 != 0 })
    }
}

/// A command that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiDone {
    /// Which.
    pub ticket: Ticket,
    /// VIRTIO_SCSI_S_OK is 0.
    pub response: u8,
    /// The SCSI status, if the response is OK.
    pub status: u8,
    /// Sense data, if there are any.
    pub sense: Option<Sense>,
    /// Bytes of the buffer that were not used.
    pub residual: u32,
}

impl ScsiDone {
    /// Whether it ended with GOOD.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        self.response == 0 && self.status == GOOD
    }
}
