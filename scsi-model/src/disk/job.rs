//! A command's work on the storage: one operation after the other, in one slot.

use blk_core::memory::GuestMemory;
use blk_core::op::Op;
use blk_core::order::{Order, Request};
use blk_core::storage::Storage;
use blk_core::units::Extent;

use super::io::Io;
use super::limits::unmapped;
use super::settings::Settings;
use super::transfer::{Transfer, Verb};
use crate::sense::Sense;
use crate::transport::Transport;

/// Effect on the unit when a job has succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) enum After {
    Nothing,
    /// MODE SELECT: these are in force.
    Settings(Settings),
    /// START STOP UNIT: stopped.
    Stop,
}

/// A command's work.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) enum Job {
    /// Moves blocks.
    Transfer(Transfer),
    /// Writes zeroes.
    Zeroes { extent: Extent, may_unmap: bool },
    /// Discards an extent, and then those of the first `left` descriptors in the staging buffer, from the last to the first.
    Discard { extent: Extent, left: u8 },
    /// Flushes.
    Flush(After),
}

/// Result of starting a command.
pub(super) struct Begun {
    /// Bytes of reply given, or of parameters taken.
    pub(super) moved_bytes: u64,
    /// What it needs the storage for; otherwise it has ended with GOOD.
    pub(super) job: Option<Job>,
}

impl Begun {
    pub(super) const GOOD: Self = Self { moved_bytes: 0, job: None };
}

impl Job {
    pub(super) const fn transfer(verb: Verb, extent: Extent, fua: bool) -> Self {
        Self::Transfer(Transfer::new(verb, extent, fua))
    }

    /// The next operation of a job that is not done, with its segments in the guest's list. The same once more until it
    /// [has succeeded](Self::completed).
    #[inline]
    pub(super) fn next<M, S, T>(
        &mut self,
        slot: u16,
        tag: u64,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Request, Sense>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        io.guest.list.clear();
        Ok(match self {
            Self::Transfer(transfer) => transfer.next(slot, tag, io)?,
            Self::Zeroes { extent, may_unmap, .. } => {
                Request::new(Op::WriteZeroes { extent: *extent, may_unmap: *may_unmap })
            }
            Self::Discard { extent, .. } => Request::new(Op::Discard { extent: *extent }),
            Self::Flush(After::Nothing) => Request::new(Op::Flush),
            // Drains what is in flight and holds what is younger: nothing is written from the cache that is switched.
            Self::Flush(_) => Request::new(Op::Flush).ordered(Order::Barrier),
        })
    }

    /// Sectors of the operation that [`Self::next`] gave last, if it has segments.
    #[inline]
    pub(super) const fn planned(&self) -> u64 {
        match self {
            Self::Transfer(transfer) => transfer.planned(),
            _ => 0,
        }
    }

    /// The operation has succeeded. Returns what to do once the job is done, if that was its last one.
    #[inline(always)]
    pub(super) fn completed<M, S, T>(
        &mut self,
        slot: u16,
        tag: u64,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Option<After>, Sense>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        match self {
            Self::Transfer(transfer) if transfer.is_plain() => {
                transfer.chunk_done();
                Ok(transfer.is_done().then_some(After::Nothing))
            }
            Self::Flush(after) => Ok(Some(*after)),
            _ => self.completed_other(slot, tag, io),
        }
    }

    /// As [`Self::completed`], of what is none of the daily bread.
    #[inline(never)]
    fn completed_other<M, S, T>(
        &mut self,
        slot: u16,
        tag: u64,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Option<After>, Sense>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        Ok(match self {
            Self::Transfer(transfer) => {
                transfer.completed_staged(slot, tag, io)?;
                transfer.is_done().then_some(After::Nothing)
            }
            Self::Zeroes { .. } => Some(After::Nothing),
            Self::Discard { extent, left } => match left.checked_sub(1) {
                Some(index) => {
                    (*extent, *left) = (unmapped(io.storage, slot, index)?, index);
                    None
                }
                None => Some(After::Nothing),
            },
            Self::Flush(after) => Some(*after),
        })
    }

    /// Bytes that the guest's buffer gave or took so far.
    pub(super) fn moved_bytes(&self) -> u64 {
        match self {
            Self::Transfer(transfer) => transfer.moved_bytes(),
            _ => 0,
        }
    }

    /// Whether the operation in flight reads.
    pub(super) fn reads(&self) -> bool {
        matches!(self, Self::Transfer(transfer) if transfer.reads())
    }

    /// Whether it may have a hold on the storage, which ends with it.
    pub(super) const fn holds(&self) -> bool {
        matches!(self, Self::Transfer(transfer) if transfer.is_atomic())
    }
}
