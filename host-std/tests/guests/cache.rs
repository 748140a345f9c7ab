//! What the guests are made of: fetched once, by the scripts in `host-std/guests`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use host_std::testing::vm::fetched;

use crate::say;

/// Kernels, tools and emulators, unpacked; and the initramfs.
pub(crate) struct Cache {
    root: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// The guest's part of the tests.
    pub(crate) agent: PathBuf,
}

impl Cache {
    /// Fetches what is not there yet, which it says.
    pub(crate) fn get() -> &'static Self {
        static CACHE: OnceLock<Cache> = OnceLock::new();
        CACHE.get_or_init(|| {
            let root = fetched::folder();
            let root = root.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("blk-host-guests"));
            say!("kernels and emulators are kept in {}", root.display());
            fetched::fetch(&root, &[]).expect("fetched");
            let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
            // Made elsewhere and moved into place whole: another process may be using what is there, or making the same.
            let workshop = tempfile::tempdir_in(built).expect("a folder");
            let made = |name: &str| {
                std::fs::rename(workshop.path().join(name), built.join(name)).expect("moved into place");
                built.join(name)
            };
            let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
            // Linked statically: the guest has another C library than the one here.
            let options =
                ["--edition=2024", "-O", "-Ctarget-feature=+crt-static", "-Cpanic=abort", "-Cstrip=symbols"];
            run(Command::new(rustc)
                .args(options)
                .arg(script("agent.rs"))
                .arg("-o")
                .arg(workshop.path().join("guest-agent")));
            let agent = made("guest-agent");
            run(&mut initramfs(&root, &agent, &workshop.path().join("guest-initramfs.cpio")));
            let initramfs = made("guest-initramfs.cpio");
            Self { root, initramfs, agent }
        })
    }

    /// The initramfs with files of this machine: each by its path there and its path here.
    pub(crate) fn initramfs_with(&self, files: &[(&str, &Path)], out: &Path) {
        let mut command = initramfs(&self.root, &self.agent, out);
        for (there, here) in files {
            command.arg(format!("{there}={}", here.display()));
        }
        run(&mut command);
    }

    pub(crate) fn file(&self, path: &str) -> PathBuf {
        let file = self.root.join(path);
        assert!(
            file.exists(),
            "{} is missing; remove {} to fetch it again",
            file.display(),
            self.root.display()
        );
        file
    }

    /// User-Mode Linux.
    pub(crate) fn uml(&self) -> PathBuf {
        fetched::uml(&self.root)
    }

    /// A program of one of the trees, with that tree's libraries.
    pub(crate) fn program(&self, tree: &str, name: &str) -> Command {
        let usr = self.file(tree).join("unpacked/usr");
        let file =
            ["bin", "sbin"].map(|folder| usr.join(folder).join(name)).into_iter().find(|file| file.exists());
        let mut command = Command::new(usr.join("lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(usr.join("lib/x86_64-linux-gnu"));
        command.arg(file.unwrap_or_else(|| panic!("{} has no {name}", usr.display())));
        command
    }

    /// Of the packaged kernel there is one, whatever its version.
    pub(crate) fn kernel(&self) -> PathBuf {
        let boot = self.file("linux/unpacked/boot");
        let files = std::fs::read_dir(&boot).expect("a folder").map(|entry| entry.expect("an entry").path());
        let mut kernels = files.filter(|path| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz"))
        });
        kernels.next().unwrap_or_else(|| panic!("no kernel in {}", boot.display()))
    }
}

fn initramfs(root: &Path, agent: &Path, out: &Path) -> Command {
    let mut command = Command::new(script("initramfs"));
    command.args([root, agent, out]);
    command
}

/// A script beside the tests.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guests").join(name)
}

/// Runs a command that has to succeed.
pub(crate) fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
