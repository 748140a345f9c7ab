//! The end of a recording, where all handles of an image append: one order for everything.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use blk_core::op::Op;
use blk_core::storage::{Info, IoError};
use zerocopy::IntoBytes as _;

use crate::mutex::lock;
use crate::recording::format::{
    CompleteBody, InfoBody, RecordHeader, SessionBody, SubmitBody, WithdrawnBody, flag, kind,
};
use crate::recording::is_zero;

/// Reads that wait in memory before they are written.
const LAZY_BYTES: usize = 64 * 1024;

/// The recording could not be written. It has been said once; nothing is recorded any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// When a record has to be in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// Before the call returns, so that it outlives the process.
    Now,
    /// With the next one that is written now: it says nothing of the image's contents.
    Later,
}

pub(super) struct Writer {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    file: File,
    /// What is still to be written.
    pending: Vec<u8>,
    /// Records so far.
    sequence: u64,
    broken: bool,
    /// The session's last record is written.
    ended: bool,
}

impl Writer {
    /// Goes on at the end of `file`, after `sequence` records, with a new session.
    pub(super) fn begin(path: PathBuf, file: File, sequence: u64, info: Info) -> Result<Self, Broken> {
        let state = State { file, pending: Vec::new(), sequence, broken: false, ended: false };
        let writer = Self { path, state: Mutex::new(state) };
        let time = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let body = SessionBody {
            time: time.into(),
            process: std::process::id().into(),
            reserved: 0.into(),
            info: InfoBody::encode(&info),
        };
        writer.lock().append(&writer.path, kind::SESSION, 0, 0, [body.as_bytes(), &[]], When::Now)?;
        Ok(writer)
    }

    /// Records so far.
    pub(super) fn position(&self) -> u64 {
        self.lock().sequence
    }

    /// The storage is something else from now on: it was resized.
    pub(super) fn changed(&self, info: &Info) -> Result<(), Broken> {
        let body = InfoBody::encode(info);
        self.lock().append(&self.path, kind::INFO, 0, 0, [body.as_bytes(), &[]], When::Now)
    }

    /// An operation is about to be given to the host, with `data` if it is a write. Returns its sequence number.
    pub(super) fn submit(&self, handle: u32, op: Op, data: &[u8]) -> Result<u64, Broken> {
        let (body, mut flags) = SubmitBody::encode(op);
        let zeroes = !data.is_empty() && is_zero(data);
        if zeroes {
            flags |= flag::ZEROES;
        }
        let data = if zeroes { &[] } else { data };
        let mut state = self.lock();
        let submission = state.sequence;
        state.append(&self.path, kind::SUBMIT, flags, handle, [body.as_bytes(), data], when(op))?;
        Ok(submission)
    }

    /// The host was busy after all.
    pub(super) fn withdrawn(&self, handle: u32, submission: u64) -> Result<(), Broken> {
        let body = WithdrawnBody { submission: submission.into() };
        self.lock().append(&self.path, kind::WITHDRAWN, 0, handle, [body.as_bytes(), &[]], When::Now)
    }

    /// A completion was taken from the host.
    pub(super) fn complete(
        &self,
        handle: u32,
        op: Op,
        submission: u64,
        result: Result<(), IoError>,
    ) -> Result<(), Broken> {
        let body = CompleteBody::encode(submission, result);
        self.lock().append(&self.path, kind::COMPLETE, 0, handle, [body.as_bytes(), &[]], when(op))
    }

    /// Nothing that was submitted on `handle` lands any more.
    pub(super) fn fence(&self, handle: u32) -> Result<(), Broken> {
        self.lock().append(&self.path, kind::FENCE, 0, handle, [&[], &[]], When::Now)
    }

    /// Returns the position right after the mark.
    pub(super) fn mark(&self, text: &str) -> Result<u64, Broken> {
        let mut state = self.lock();
        state.append(&self.path, kind::MARK, 0, 0, [text.as_bytes(), &[]], When::Now)?;
        Ok(state.sequence)
    }

    /// The server has stopped in order. Nothing is recorded any more.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        if !state.ended {
            // A failure has been logged; there is nobody left to tell.
            let _ = state.append(&self.path, kind::END, 0, 0, [&[], &[]], When::Now);
            state.ended = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it is held leaves a record half-written at worst, and `broken` is set before that.
        lock(&self.state)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

/// The submission of a change is in the file before the host has it, so that a recording whose process was killed knows of
/// every byte that may have reached the image; its completion before the guest can hear of it.
fn when(op: Op) -> When {
    if matches!(op, Op::Read { .. }) { When::Later } else { When::Now }
}

impl State {
    fn append(
        &mut self,
        path: &std::path::Path,
        kind: u16,
        flags: u16,
        handle: u32,
        parts: [&[u8]; 2],
        when: When,
    ) -> Result<(), Broken> {
        if self.broken || self.ended {
            return Err(Broken);
        }
        let header = RecordHeader::new(self.sequence, kind, flags, handle, parts);
        self.pending.extend_from_slice(header.as_bytes());
        let [body, data] = parts;
        self.pending.extend_from_slice(body);
        // What is large is not copied once more: it is written from where it is.
        let apart = data.len() >= LAZY_BYTES;
        if !apart {
            self.pending.extend_from_slice(data);
        }
        self.sequence += 1;
        if apart || when == When::Now || self.pending.len() >= LAZY_BYTES {
            self.broken = true;
            let rest: &[u8] = if apart { data } else { &[] };
            if let Err(error) = self.file.write_all(&self.pending).and_then(|()| self.file.write_all(rest)) {
                tracing::error!(
                    recording = %path.display(), %error,
                    "cannot be written: from now on flushes and writes fail; make room, then restart the server"
                );
                return Err(Broken);
            }
            self.broken = false;
            self.pending.clear();
        }
        Ok(())
    }
}
