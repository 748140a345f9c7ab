//! The programs of others that the demonstration needs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use host_std::testing::vm::fetched;

use crate::cli::DemoArgs;

/// What was found.
pub(super) struct Tools {
    /// User-Mode Linux.
    pub(super) uml: PathBuf,
    /// The folder of its modules, where it has one.
    pub(super) modules: Option<PathBuf>,
    mkfs: PathBuf,
}

/// Where programs of the administrator are, which are not in the `PATH` of everybody.
const ADMINISTRATOR: &str = "/usr/local/sbin:/usr/sbin:/sbin";

impl Tools {
    /// Finds them all, before anything is begun.
    pub(super) fn find(args: &DemoArgs) -> anyhow::Result<Self> {
        ensure!(cfg!(target_arch = "x86_64"), "demo: User-Mode Linux is there for x86-64 only");
        let mkfs = program("mkfs.ext4").context("mkfs.ext4: not found; install the package e2fsprogs")?;
        let uml = uml(args)?;
        // Debian's: /usr/bin/linux.uml and /usr/lib/uml/modules.
        let modules = uml.parent().and_then(Path::parent).map(|usr| usr.join("lib/uml/modules"));
        Ok(Self { modules: modules.filter(|folder| folder.is_dir()), uml, mkfs })
    }

    /// Makes a file system in a file, complete: nothing is left to do in the background once it is mounted.
    pub(super) fn make_file_system(&self, image: &Path, block_bytes: u32) -> anyhow::Result<()> {
        let mut command = Command::new(&self.mkfs);
        command.args([
            "-q",
            "-F",
            "-b",
            &block_bytes.to_string(),
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0",
        ]);
        command.arg(image);
        let output = command.stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("cannot start {}", self.mkfs.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} {}: {}", self.mkfs.display(), image.display(), said.trim());
        Ok(())
    }
}

fn uml(args: &DemoArgs) -> anyhow::Result<PathBuf> {
    let cache = fetched::folder();
    if args.fetch {
        let folder = cache.context("--fetch: into which folder? set HOME or BLK_HOST_CACHE")?;
        fetched::fetch(&folder, &["uml"]).context("--fetch")?;
        return Ok(fetched::uml(&folder));
    }
    if let Some(path) = &args.uml {
        // Guests are started in folders of their own.
        let found = std::path::absolute(path).ok().filter(|path| path.is_file());
        return found.with_context(|| format!("--uml {}: there is no such file", path.display()));
    }
    let fetched = cache.map(|folder| fetched::uml(&folder)).filter(|path| path.is_file());
    match program("linux.uml").or(fetched) {
        Some(path) => Ok(path),
        None => bail!(
            "User-Mode Linux: linux.uml not found; install the package user-mode-linux (apt-get install \
             user-mode-linux), give --fetch, which unpacks Debian's and installs nothing, or give --uml PROGRAM"
        ),
    }
}

/// The path of a program by its name.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(std::env::split_paths(OsStr::new(ADMINISTRATOR)));
    folders.filter(|folder| folder.is_absolute()).map(|folder| folder.join(name)).find(|path| path.is_file())
}
