//! What a guest asks of its disk, whatever the disk is.

pub(crate) mod ahci;
pub(crate) mod blk;
pub(crate) mod scsi;

use std::time::Duration;

/// All that this test has of the client's side.
pub(crate) use host_std::testing::client::{
    Blk, ClientError, Command as ScsiCommand, Options, Payload, Request as BlkRequest, Scsi, ScsiPayload,
    Ticket, cdb,
    vfio_user::{CONFIG, VfioUser},
};

pub(crate) const BLOCK: usize = 4096;
pub(crate) const SECTORS_PER_BLOCK: u64 = 8;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Write {
        block: u64,
        version: u32,
        fua: bool,
    },
    Zero {
        block: u64,
    },
    /// A write of version `to`, if the block holds version `from`: what cannot be done twice (SCSI only).
    Exchange {
        block: u64,
        from: u32,
        to: u32,
    },
    Read {
        block: u64,
    },
    Flush,
    CacheOff,
}

/// Names a request that was submitted.
pub(crate) type Id = u64;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As it should, with the data of a read.
    Done(Vec<u8>),
    /// With an error.
    Failed(String),
    /// It was not done, and is to be submitted again: the device had something else to say first.
    Again,
}

/// A request did not end.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// The connection ended, or cannot be made.
    Lost(String),
    /// Nothing happened within the limit.
    Late(String),
    /// The device broke the rules of its interface.
    Wrong(String),
}

impl From<ClientError> for Trouble {
    fn from(error: ClientError) -> Self {
        let text = error.to_string();
        match error {
            ClientError::NoAnswer { .. } | ClientError::Timeout { .. } | ClientError::LostNotification => {
                Self::Late(text)
            }
            ClientError::Misbehaves(_) | ClientError::Full => Self::Wrong(text),
            _ => Self::Lost(text),
        }
    }
}

/// A guest and its driver.
pub(crate) trait Guest {
    /// Connects: the first time, after a loss, or after it left. Returns whether what the device had been told and given still
    /// holds; otherwise requests are to be submitted again, and settings made again.
    fn connect(&mut self) -> Result<bool, Trouble>;

    /// Leaves without a word. The next connection is another guest's.
    fn leave(&mut self);

    fn submit(&mut self, request: &Request) -> Result<Id, Trouble>;

    /// Waits for the next request that comes back, and for its interrupt.
    fn wait(&mut self) -> Result<(Id, Outcome), Trouble>;

    /// Whether the device was reset since this was asked last: what it had been told is to be told again.
    fn take_reset(&mut self) -> bool {
        false
    }

    /// That nothing comes back that was not asked for.
    fn nothing_more(&mut self) -> Result<(), Trouble>;
}

/// A guest of a front end whose socket is at `socket`.
pub(crate) fn of(front: crate::Front, socket: std::path::PathBuf, limit: Duration) -> Box<dyn Guest> {
    match front {
        crate::Front::VirtioBlk => Box::new(blk::BlkGuest::new(socket, limit)),
        crate::Front::VirtioScsi => Box::new(scsi::ScsiGuest::new(socket, limit)),
        crate::Front::Ahci => Box::new(ahci::AhciGuest::new(socket, limit)),
    }
}

/// What a write of a block writes: no other write's bytes.
pub(crate) fn contents(block: u64, version: u32) -> Vec<u8> {
    let word = (block << 32 | u64::from(version)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_n(word.to_le_bytes(), BLOCK / 8).flatten().collect()
}

/// How a client of vhost-user uses its rings here.
fn options(queues: u16, limit: Duration) -> Options {
    // An exchange has the data to compare with, too.
    let bytes = 2 * BLOCK as u32;
    Options {
        queues,
        transfer_bytes: bytes,
        segment_bytes: bytes,
        interrupts_only: true,
        timeout: limit,
        ..Options::default()
    }
}
