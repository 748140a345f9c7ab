//! "Is my stack safe?": what lies between a path and the medium, layer by layer, and whether it keeps what a guest was told
//! is stable.
//!
//! A probe leaves nothing behind. It looks at the file, at the filesystem under it, and through sysfs at the block devices
//! under that, down to the disks; through a loop device it goes on to the backing file and its stack. Each [`Layer`] gets
//! findings: what was read, why it matters, and what to do about it.
//!
//! What it cannot see it calls unknown, never safe: the host below a virtual disk, the server behind NFS or NBD, a disk that
//! claims to have no write cache and cannot be asked.
//!
//! ```
//! use host_std::probe::{Verdict, probe};
//!
//! let report = probe(&std::env::temp_dir())?;
//! print!("{report}");
//! assert!(report.modes.iter().any(|mode| mode.mode == "unsafe" && mode.verdict == Verdict::Unsafe));
//! let status: u8 = report.verdict.exit_status();
//! # let _ = status;
//! # Ok::<(), host_std::probe::ProbeError>(())
//! ```

mod block;
mod device;
mod disk;
mod extents;
mod file;
mod filesystem;
pub(crate) mod ioctl;
mod modes;
mod mountinfo;
mod report;
mod system;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

pub use report::{Finding, Layer, LayerKind, ModeReport, Possible, Report, Verdict};

use mountinfo::Mount;
use system::{DevNo, FileFacts, FileKind, Host, System};

/// Why a path cannot be probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The path does not exist.
    #[error(
        "{0}: no such file; make the image first (truncate -s 10G {0}), or give the directory that it will be made in"
    )]
    NotFound(PathBuf),
    /// The path cannot be looked at.
    #[error("{path}: cannot be looked at: {source}; give a path that this user may read")]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The path is neither a regular file, nor a directory, nor a block device.
    #[error("{0}: not a disk image; give a regular file, a block device, or the directory for an image")]
    NotAnImage(PathBuf),
}

/// Looks at every layer between `path` and the medium.
///
/// `path` is an image, a block device, or a directory in which an image is to be made.
///
/// # Errors
/// [`ProbeError`] if the path itself cannot be looked at. What cannot be seen further down is an unknown finding.
pub fn probe(path: &Path) -> Result<Report, ProbeError> {
    probe_on(&Host, path)
}

fn probe_on(system: &dyn System, path: &Path) -> Result<Report, ProbeError> {
    let facts = system.file(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ProbeError::NotFound(path.to_owned()),
        _ => ProbeError::Unreadable { path: path.to_owned(), source },
    })?;
    if facts.kind == FileKind::Other {
        return Err(ProbeError::NotAnImage(facts.path));
    }
    // A thread may have a mount namespace of its own.
    let mountinfo = system.root().join("proc/thread-self/mountinfo");
    let mounts = mountinfo::parse(&std::fs::read(mountinfo).unwrap_or_default());
    let mut walk = Walk { system, mounts, layers: Vec::new(), seen: HashSet::new() };
    walk.process();
    walk.file(&facts, 0);
    let layers = walk.layers;
    let verdict = match layers.iter().map(Layer::verdict).max() {
        None | Some(Verdict::Note) => Verdict::Unknown,
        Some(verdict) => verdict,
    };
    let modes = modes::judge(&facts, &layers, verdict);
    Ok(Report { path: facts.path, layers, modes, verdict })
}

/// Layers below which the walk gives up. Linux itself stacks filesystems two deep; device mapper has no bound.
const DEPTH_MAX: u32 = 24;

/// A walk down a stack, which is a graph: a device reached twice is reported once.
struct Walk<'a> {
    system: &'a dyn System,
    mounts: Vec<Mount>,
    layers: Vec<Layer>,
    seen: HashSet<DevNo>,
}

impl Walk<'_> {
    /// Whether the walk may go down to a layer at `depth`; if not, the last layer says so.
    fn may_descend(&mut self, depth: u32) -> bool {
        if depth > DEPTH_MAX
            && let Some(layer) = self.layers.last_mut()
        {
            layer.unknown(
                format!("more than {DEPTH_MAX} layers"),
                "the rest of the stack was not looked at",
                "probe the lower devices on their own",
            );
        }
        depth <= DEPTH_MAX
    }

    /// This process, if its syncs do not get as far as the kernel.
    fn process(&mut self) {
        if self.system.swallows_syncs() {
            let mut layer = Layer::new(LayerKind::Process, std::process::id().to_string(), 0);
            layer.loses(
                "fdatasync of a pipe succeeds",
                "the kernel would refuse it with EINVAL: a library (eatmydata) or a seccomp filter (systemd-nspawn \
                 --suppress-sync) makes every sync a success that does nothing",
                "run without LD_PRELOAD, or in a container without that filter",
            );
            self.layers.push(layer);
        }
    }

    /// A file, and what it lies on.
    fn file(&mut self, facts: &FileFacts, depth: u32) {
        if !self.may_descend(depth) {
            return;
        }
        self.layers.push(file::layer(facts, depth));
        match facts.kind {
            FileKind::Block(dev) => self.device(dev, depth + 1),
            FileKind::Regular | FileKind::Directory => self.filesystem(facts, depth + 1),
            FileKind::Other => {}
        }
    }

    /// The file at `path`, which `layer` at `depth` says it lies on: a backing file, an upper directory.
    fn lower_file(&mut self, mut layer: Layer, path: &Path, depth: u32) {
        let facts = self.system.file(path);
        if let Err(error) = &facts {
            layer.unknown(
                format!("{} cannot be looked at: {error}", path.display()),
                "what lies below is not known; it may be in another mount namespace",
                "run the probe as root, where that path can be seen",
            );
        }
        self.layers.push(layer);
        if let Ok(facts) = facts {
            self.file(&facts, depth + 1);
        }
    }
}
