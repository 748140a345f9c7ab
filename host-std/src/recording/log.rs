//! A recording, read and checked.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use blk_core::op::Op;
use blk_core::storage::Info;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::contents::Contents;
use super::event::{Data, Event, Mark, What};
use super::format::{
    CompleteBody, FileHeader, InfoBody, MAGIC, RecordHeader, SessionBody, SubmitBody, VERSION, WithdrawnBody,
    base, flag, kind,
};
use super::history::History;
use super::log_error::LogError;

/// Bytes read at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// A recording that was read to its end, every checksum verified. Data stays in the file until it is asked for.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    sectors: u64,
    contents: Contents,
    events: Vec<Event>,
    marks: Vec<Mark>,
    /// What the storage is, from which position on.
    infos: Vec<(u64, Info)>,
    history: History,
    whole_bytes: u64,
    cut_bytes: u64,
}

impl Log {
    /// Reads a recording. A tail that was cut off within a record is left out ([`Self::cut_bytes`]).
    ///
    /// # Errors
    /// [`LogError`] if it is no recording, or damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LogError> {
        let path = path.as_ref();
        let system = |what| move |error| cannot(path, what, error);
        // Opening a pipe would wait for its other end.
        if path.metadata().is_ok_and(|facts| !facts.is_file()) {
            return Err(LogError::NotARecording { path: path.into() });
        }
        let file = File::open(path).map_err(system("open it"))?;
        let bytes = file.metadata().map_err(system("look at it"))?.len();
        let mut reader = Reader { path, input: BufReader::with_capacity(BUFFER_BYTES, &file), at: 0, bytes };
        let (sectors, contents) = reader.header()?;
        let mut events = Vec::new();
        while let Some(event) = reader.event(events.len() as u64)? {
            events.push(event);
        }
        let whole_bytes = reader.at;
        let marks = events.iter().zip(1..).filter_map(|(event, position)| match &event.what {
            What::Mark(text) => Some(Mark { position, text: text.clone() }),
            _ => None,
        });
        let marks = marks.collect();
        let infos = events.iter().zip(1..).filter_map(|(event, position)| match &event.what {
            What::Session { info, .. } | What::Info(info) => Some((position, *info)),
            _ => None,
        });
        let infos = infos.collect();
        let history = History::of(&events).map_err(|(record, what)| LogError::Damaged {
            path: path.into(),
            offset: offset_of(record, &file),
            what,
        })?;
        let path = path.into();
        Ok(Self {
            path,
            file,
            sectors,
            contents,
            events,
            marks,
            infos,
            history,
            whole_bytes,
            cut_bytes: bytes - whole_bytes,
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The image's size at the start, in sectors.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }

    /// What the image held at the start.
    #[must_use]
    pub const fn contents(&self) -> Contents {
        self.contents
    }

    /// The records, in order.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The marks, in order.
    #[must_use]
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// The marks that were set by `position`.
    #[must_use]
    pub fn marks_until(&self, position: u64) -> &[Mark] {
        &self.marks[..self.marks.partition_point(|mark| mark.position <= position)]
    }

    /// The last position: the number of records.
    #[must_use]
    pub const fn positions(&self) -> u64 {
        self.events.len() as u64
    }

    /// The bytes of the file up to the end of the last whole record.
    #[must_use]
    pub const fn whole_bytes(&self) -> u64 {
        self.whole_bytes
    }

    /// The bytes of a record that was cut off at the end of the file: 0 where there is none.
    #[must_use]
    pub const fn cut_bytes(&self) -> u64 {
        self.cut_bytes
    }

    /// What the storage was at `position`; `None` before the first session.
    #[must_use]
    pub fn info_at(&self, position: u64) -> Option<&Info> {
        let before = self.infos.partition_point(|(from, _)| *from <= position);
        self.infos[..before].last().map(|(_, info)| info)
    }

    pub(crate) const fn history(&self) -> &History {
        &self.history
    }

    /// Reads bytes of the data of a write.
    pub(crate) fn read_data(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(into, offset)
    }
}

/// Where a record begins: found by going through the file again, for an error alone.
fn offset_of(record: u64, file: &File) -> u64 {
    let mut at = size_of::<FileHeader>() as u64;
    for _ in 0..record {
        let mut header = [0; size_of::<RecordHeader>()];
        let Ok(()) = file.read_exact_at(&mut header, at) else { break };
        let Ok(header) = RecordHeader::read_from_bytes(&header) else { break };
        at += (size_of::<RecordHeader>() as u64) + u64::from(header.len.get());
    }
    at
}

/// Goes through the file once.
struct Reader<'a> {
    path: &'a Path,
    input: BufReader<&'a File>,
    /// The end of the last whole record.
    at: u64,
    /// The size of the file when it was opened: a server may be appending.
    bytes: u64,
}

impl Reader<'_> {
    fn header(&mut self) -> Result<(u64, Contents), LogError> {
        let not_one = || LogError::NotARecording { path: self.path.into() };
        if self.bytes < size_of::<FileHeader>() as u64 {
            return Err(not_one());
        }
        let mut bytes = [0; size_of::<FileHeader>()];
        self.read(&mut bytes)?;
        let header = FileHeader::read_from_bytes(&bytes).map_err(|_| not_one())?;
        if header.magic != MAGIC {
            return Err(not_one());
        }
        if header.crc.get() != header.checksum() {
            return Err(self.damaged("the checksum of the file header is wrong"));
        }
        let version = header.version.get();
        if version != VERSION {
            return Err(LogError::Version { path: self.path.into(), version });
        }
        let contents = match header.base.get() {
            base::ZEROES => Contents::Zeroes,
            base::DATA => Contents::Data { hash: u128::from_le_bytes(header.hash) },
            _ => return Err(self.damaged("the file header is of an unknown kind")),
        };
        self.at = bytes.len() as u64;
        Ok((header.sectors.get(), contents))
    }

    /// The next record, which is to have this sequence number; `None` at the end of what is whole.
    fn event(&mut self, sequence: u64) -> Result<Option<Event>, LogError> {
        let left = self.bytes - self.at;
        let header_bytes = size_of::<RecordHeader>() as u64;
        if left < header_bytes {
            return Ok(None);
        }
        let mut bytes = [0; size_of::<RecordHeader>()];
        self.read(&mut bytes)?;
        let Ok(header) = RecordHeader::read_from_bytes(&bytes) else { return Ok(None) };
        if header.crc.get() != header.checksum() {
            return Err(self.damaged("the checksum of the record's header is wrong"));
        }
        if header.sequence.get() != sequence {
            return Err(self.damaged("its sequence number does not follow the one before"));
        }
        let len = u64::from(header.len.get());
        if left - header_bytes < len {
            return Ok(None);
        }
        let mut body = vec![0; len as usize];
        self.read(&mut body)?;
        if crc32c::crc32c(&body) != header.body_crc.get() {
            return Err(self.damaged("the checksum of the record's body is wrong"));
        }
        let body_at = self.at + header_bytes;
        let what = what(&header, &body, body_at).ok_or_else(|| self.damaged("it makes no sense"))?;
        self.at = body_at + len;
        Ok(Some(Event { handle: header.handle.get(), what }))
    }

    fn read(&mut self, into: &mut [u8]) -> Result<(), LogError> {
        let path = self.path;
        self.input.read_exact(into).map_err(|error| cannot(path, "read it", error))
    }

    fn damaged(&self, what: &'static str) -> LogError {
        LogError::Damaged { path: self.path.into(), offset: self.at, what }
    }
}

fn cannot(path: &Path, what: &'static str, error: std::io::Error) -> LogError {
    LogError::System { path: path.into(), what, error, remedy: "give a recording that can be read" }
}

fn what(header: &RecordHeader, body: &[u8], body_at: u64) -> Option<What> {
    Some(match header.kind.get() {
        kind::SESSION => {
            let session: SessionBody = exactly(body)?;
            let (time, process) = (session.time.get(), session.process.get());
            What::Session { time, process, info: session.info.decode()? }
        }
        kind::INFO => What::Info(exactly::<InfoBody>(body)?.decode()?),
        kind::SUBMIT => {
            let (submit, data) = SubmitBody::read_from_prefix(body).ok()?;
            let op = submit.decode(header.flags.get())?;
            let zeroes = header.flags.get() & flag::ZEROES != 0;
            let wanted = match op {
                Op::Write { extent, .. } if !zeroes => extent.bytes()?,
                _ => 0,
            };
            if data.len() as u64 != wanted {
                return None;
            }
            let data = match data.len() {
                _ if zeroes => Data::Zeroes,
                0 => Data::None,
                _ => Data::At(body_at + size_of::<SubmitBody>() as u64),
            };
            What::Submit { op, data }
        }
        kind::COMPLETE => {
            let complete: CompleteBody = exactly(body)?;
            What::Complete { submission: complete.submission.get(), result: complete.decode()? }
        }
        kind::WITHDRAWN => What::Withdrawn { submission: exactly::<WithdrawnBody>(body)?.submission.get() },
        kind::FENCE => What::Fence,
        kind::MARK => What::Mark(String::from_utf8(body.to_vec()).ok()?),
        kind::END => What::End,
        _ => return None,
    })
}

fn exactly<T: FromBytes + Immutable + KnownLayout + Unaligned>(body: &[u8]) -> Option<T> {
    T::read_from_bytes(body).ok()
}
