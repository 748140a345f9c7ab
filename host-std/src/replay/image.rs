//! A disk's contents at a position, put together from the image at the start and the data in the recording.

use std::fs::{File, Permissions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use blk_core::units::SECTOR_BYTES;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::medium::{BASE, Medium, Runs, floor, live};
use crate::recording::history::{ChangeId, Content};
use crate::recording::{Contents, Summary, is_zero};
use crate::recording::{Log, LogError};

const SECTOR: u64 = SECTOR_BYTES as u64;
/// Bytes copied at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// What the image held when the recording began.
#[derive(Debug)]
pub enum Base {
    /// Zeroes.
    Zeroes,
    /// What this file holds.
    File(File),
}

impl Base {
    /// The image that `log` begins with: `path`, after it has been compared with what the recording says, or zeroes if it
    /// says so.
    ///
    /// # Errors
    /// [`LogError`] if a file is needed and none is given, or if it is another one.
    pub fn open(log: &Log, path: Option<&Path>) -> Result<Self, LogError> {
        let Some(path) = path else {
            return match log.contents() {
                Contents::Zeroes => Ok(Self::Zeroes),
                Contents::Data { .. } => Err(LogError::BaseMissing { log: log.path().into() }),
            };
        };
        let remedy = "give --base an image that can be read";
        let failed = |error| LogError::System { path: path.into(), what: "read the image", error, remedy };
        let differs = |why| LogError::BaseDiffers { base: path.into(), log: log.path().into(), why };
        let file = File::open(path).map_err(failed)?;
        let bytes = log.sectors() * SECTOR;
        if file.metadata().map_err(failed)?.len() != bytes {
            return Err(differs("its size is another"));
        }
        let (mut summary, mut piece) = (Summary::default(), vec![0; PIECE_BYTES as usize]);
        for range in pieces(0..bytes) {
            let piece = &mut piece[..(range.end - range.start) as usize];
            file.read_exact_at(piece, range.start).map_err(failed)?;
            summary.add(piece);
        }
        match summary.contents() {
            contents if contents != log.contents() => Err(differs("its contents are others")),
            Contents::Zeroes => Ok(Self::Zeroes),
            Contents::Data { .. } => Ok(Self::File(file)),
        }
    }
}

/// Which version of a run is meant where there are several.
#[derive(Clone, Debug)]
pub(super) enum View {
    /// What a read returned.
    Live,
    /// What a power cut left: these, and elsewhere what is stable.
    Cut(Arc<[ChosenVersion]>),
}

/// A version that was chosen for some sectors of a run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ChosenVersion {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) version: ChangeId,
}

/// The contents of a disk at a position. A clone is cheap.
#[derive(Clone)]
pub struct Image {
    log: Arc<Log>,
    base: Arc<Base>,
    runs: Runs,
    position: u64,
    sectors: u64,
    view: View,
}

/// Where bytes come from.
enum Source {
    Base,
    Zeroes,
    /// This byte of the recording and those after it.
    Recorded(u64),
}

impl Image {
    /// What a read of the image returned at `position`: every completed change has happened, in the order of completion, and
    /// none of those in flight.
    ///
    /// # Errors
    /// [`LogError::NoPosition`].
    pub fn live(log: &Arc<Log>, base: &Arc<Base>, position: u64) -> Result<Self, LogError> {
        if position > log.positions() {
            let (log, last) = (log.path().into(), log.positions());
            return Err(LogError::NoPosition { log, position, last });
        }
        let mut medium = Medium::new(Arc::clone(log));
        medium.advance(position);
        Ok(Self::new(log, base, medium.runs(), position, View::Live))
    }

    pub(super) fn new(log: &Arc<Log>, base: &Arc<Base>, runs: &Runs, position: u64, view: View) -> Self {
        let sectors = log.info_at(position).map_or(log.sectors(), |info| info.sectors);
        Self { log: Arc::clone(log), base: Arc::clone(base), runs: runs.clone(), position, sectors, view }
    }

    /// Its size in sectors.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Reads from `sector` on.
    ///
    /// # Errors
    /// The kernel's, of reading the recording or the image at the start.
    pub fn read(&self, sector: u64, into: &mut [u8]) -> io::Result<()> {
        let end = sector + (into.len() as u64).div_ceil(SECTOR);
        let mut rest = into;
        for (range, source) in self.sources(sector..end) {
            let len = ((range.end - range.start) * SECTOR).min(rest.len() as u64) as usize;
            let (piece, after) = rest.split_at_mut(len);
            rest = after;
            match source {
                Source::Zeroes => piece.fill(0),
                Source::Recorded(at) => self.log.read_data(at, piece)?,
                Source::Base => self.read_base(range.start, piece)?,
            }
        }
        Ok(())
    }

    /// The base as far as it goes; a disk that was made larger holds zeroes there.
    fn read_base(&self, sector: u64, into: &mut [u8]) -> io::Result<()> {
        let known = (self.log.sectors().saturating_sub(sector) * SECTOR).min(into.len() as u64) as usize;
        let (known, new) = into.split_at_mut(known);
        new.fill(0);
        match &*self.base {
            Base::Zeroes => known.fill(0),
            Base::File(file) => file.read_exact_at(known, sector * SECTOR)?,
        }
        Ok(())
    }

    /// Cuts sectors into pieces that come from one place each.
    fn sources(&self, sectors: Range<u64>) -> impl Iterator<Item = (Range<u64>, Source)> {
        let Range { start: mut at, end } = sectors;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let start = at;
            let within = self.runs.get_prev(&at).filter(|(_, run)| run.end > start);
            let (until, version) = match within {
                Some((_, run)) => self.version(start, run.end, &run.versions),
                None => (self.runs.get_next(&at).map_or(end, |(next, _)| *next), BASE),
            };
            at = until.min(end);
            Some((start..at, self.source(start, version)))
        })
    }

    /// The version at `sector` of a run that ends at `end`, and up to where it is that.
    fn version(&self, sector: u64, end: u64, versions: &[ChangeId]) -> (u64, ChangeId) {
        match (&self.view, versions) {
            (_, [only]) => (end, *only),
            (View::Live, _) => (end, live(&self.log, self.position, versions)),
            (View::Cut(picks), _) => {
                let next = picks.partition_point(|pick| pick.end <= sector);
                match picks.get(next) {
                    Some(pick) if pick.start <= sector => (end.min(pick.end), pick.version),
                    Some(pick) => (end.min(pick.start), floor(&self.log, self.position, versions)),
                    None => (end, floor(&self.log, self.position, versions)),
                }
            }
        }
    }

    fn source(&self, sector: u64, version: ChangeId) -> Source {
        if version == BASE {
            return Source::Base;
        }
        let change = self.log.history().change(version);
        match change.content {
            Content::Data(at) => Source::Recorded(at + (sector - change.extent.start.0) * SECTOR),
            Content::Zeroes | Content::Discarded => Source::Zeroes,
        }
    }

    /// Writes the image into a new file, with holes where it is zero: a clone of the base, where the file system can do that,
    /// and on it what was changed. The file gets its name once it is whole.
    ///
    /// # Errors
    /// [`LogError`] if the file exists or cannot be written.
    pub fn write_to(&self, path: &Path) -> Result<(), LogError> {
        let remedy =
            "give --out, or --out-dir, a path in a folder that can be written, with room for the image";
        let failed = |error| LogError::System { path: path.into(), what: "write the image", error, remedy };
        if path.exists() {
            return Err(LogError::Exists { path: path.into() });
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let readable = Permissions::from_mode(0o644);
        let file = tempfile::Builder::new().permissions(readable).tempfile_in(dir).map_err(failed)?;
        self.fill(file.as_file()).map_err(failed)?;
        file.persist_noclobber(path).map(drop).map_err(|error| failed(error.error))
    }

    fn fill(&self, file: &File) -> io::Result<()> {
        if let Base::File(base) = &*self.base {
            copy(base, file)?;
        }
        file.set_len(self.sectors * SECTOR)?;
        let mut bytes = vec![0; PIECE_BYTES as usize];
        for (start, run) in &self.runs {
            // Beyond the end: the disk was made smaller.
            for range in pieces(start * SECTOR..run.end.min(self.sectors) * SECTOR) {
                let piece = &mut bytes[..(range.end - range.start) as usize];
                self.read(range.start / SECTOR, piece)?;
                if !(matches!(*self.base, Base::Zeroes) && is_zero(piece)) {
                    file.write_all_at(piece, range.start)?;
                }
            }
        }
        Ok(())
    }
}

/// Copies a file into an empty one: by reference where the file system can, else without its holes.
fn copy(from: &File, to: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let mut bytes = vec![0; PIECE_BYTES as usize];
    let mut at = 0;
    loop {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        for range in pieces(start..end) {
            let piece = &mut bytes[..(range.end - range.start) as usize];
            from.read_exact_at(piece, range.start)?;
            to.write_all_at(piece, range.start)?;
        }
        at = end;
    }
}

/// Cuts a range of bytes into pieces to be copied one by one.
fn pieces(bytes: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = bytes.end;
    bytes.step_by(PIECE_BYTES as usize).map(move |start| start..end.min(start + PIECE_BYTES))
}
