//! User-Mode Linux: a Linux kernel as a process. It needs no privilege and no hardware virtualisation.

use std::path::Path;
use std::process::Command;

/// Where the guest's root file system comes from.
#[derive(Clone, Copy, Debug)]
pub enum Root<'a> {
    /// An initramfs: a file.
    Initramfs(&'a Path),
    /// All files of this machine, read-only, as the user who starts it may read them. `init` is the first program.
    Host {
        /// Its path here, which is its path there.
        init: &'a Path,
        /// What it is started with.
        arguments: &'a [&'a str],
    },
}

/// User-Mode Linux with one virtio disk. Its console 1 (`/dev/tty1`) is standard input and output; what its kernel says goes to
/// standard error.
#[derive(Clone, Copy, Debug)]
pub struct Uml<'a> {
    /// The kernel.
    pub program: &'a Path,
    /// Its memory.
    pub memory_mib: u32,
    /// The socket of a vhost-user device, seen from the guest's folder.
    pub socket: &'a Path,
    /// What is behind it (VIRTIO 1.3, 5: 2 is virtio-blk, 8 is virtio-scsi).
    pub device_id: u32,
    /// The root file system.
    pub root: Root<'a>,
    /// More arguments of the kernel.
    pub arguments: &'a str,
}

impl Uml<'_> {
    /// The command that starts it in `folder`, where it keeps its files and its memory.
    #[must_use]
    pub fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(self.program);
        command.arg(format!("mem={}M", self.memory_mib));
        // What is not said here of the console UML adds at the end, where it would be an argument of `init`.
        command.args([
            "console=tty0",
            "con0=null,fd:2",
            "con1=fd:0,fd:1",
            "con=null",
            "ssl=null",
            "uml_dir=./",
        ]);
        let device = format!("{}:{}", self.socket.display(), self.device_id);
        command.arg(format!("virtio_uml.device={}", quoted(&device)));
        // Without an emulated machine there is none to reset: a panic ends the process.
        command.args(["quiet", "panic=-1"]).args(self.arguments.split_whitespace());
        match self.root {
            Root::Initramfs(path) => {
                command.arg(format!("initrd={}", path.display()));
            }
            Root::Host { init, arguments } => {
                command.args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"]);
                command.arg(format!("init={}", quoted(&init.display().to_string()))).arg("--");
                command.args(arguments.iter().map(|argument| quoted(argument)));
            }
        }
        // Its memory is a file that it makes there and removes at once.
        command.env("TMPDIR", folder).current_dir(folder);
        command
    }
}

/// A value as the kernel's parser takes it, which ends one at a space outside quotes.
fn quoted(value: &str) -> String {
    if value.contains(char::is_whitespace) { format!("\"{value}\"") } else { value.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_a_space_stays_one_argument() {
        let root = Root::Host { init: Path::new("/my files/init"), arguments: &["write", "/a b"] };
        let (program, socket) = (Path::new("linux"), Path::new("/my files/disk"));
        let uml = Uml { program, memory_mib: 64, socket, device_id: 2, root, arguments: "x=1 y" };
        let command = uml.command(Path::new("/tmp"));
        let args: Vec<_> = command.get_args().filter_map(|argument| argument.to_str()).collect();
        for argument in ["virtio_uml.device=\"/my files/disk:2\"", "init=\"/my files/init\"", "x=1", "y"] {
            assert!(args.contains(&argument), "{argument}: {args:?}");
        }
        assert!(args.ends_with(&["--", "write", "\"/a b\""]), "{args:?}");
    }
}
