//! Place of the images: files without a name, so that nothing is left whatever ends the program.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use anyhow::anyhow;

use crate::temporary;

/// Bytes of an image.
pub(super) const IMAGE_BYTES: u64 = 8 << 20;

/// An image that is there as long as this is.
pub(super) struct Place {
    image: File,
    /// Where it was made, for people.
    shown: PathBuf,
}

impl Place {
    /// An image at `path`, or in a directory for temporary files.
    pub(super) fn new(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Self::in_directory(&temporary::directory()) };
        // Made here and now, so that nobody's file is ever written over.
        let made = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let image = made.map_err(|error| {
            let remedy = "give a path that does not exist yet, in a writable directory";
            anyhow!("--image {}: cannot be made: {error}; {remedy}", path.display())
        })?;
        std::fs::remove_file(path).map_err(|error| {
            anyhow!("--image {}: cannot be removed: {error}; remove it yourself", path.display())
        })?;
        Ok(Self { image, shown: path.to_owned() })
    }

    fn in_directory(directory: &Path) -> anyhow::Result<Self> {
        let image = tempfile::tempfile_in(directory).map_err(|error| {
            anyhow!("{}: cannot make a file: {error}; set TMPDIR, or give --image PATH", directory.display())
        })?;
        Ok(Self { image, shown: directory.join("(an image without a name)") })
    }

    /// A path by which this process opens the image.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.image.as_raw_fd()))
    }

    /// Writes all of the image: holes would need metadata of their own.
    pub(super) fn fill(&self) -> anyhow::Result<()> {
        let write = || -> std::io::Result<()> {
            let mut image = &self.image;
            image.rewind()?;
            let chunk = vec![0xee; 1 << 20];
            (0..IMAGE_BYTES / chunk.len() as u64).try_for_each(|_| image.write_all(&chunk))?;
            image.sync_all()
        };
        write().map_err(|error| {
            let (path, mib) = (self.shown.display(), IMAGE_BYTES >> 20);
            anyhow!("{path}: cannot write an image of {mib} MiB: {error}; make room there, or give another --image PATH")
        })
    }
}
