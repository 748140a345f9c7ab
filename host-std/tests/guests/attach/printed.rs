//! The lines that `blk-host serve` prints, copied as they stand: a new user puts a kernel where the dots are.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::cache::Cache;
use crate::guest::{Boot, Front, Guest, Machine};
use crate::say;
use crate::server::{Serve, Server};

/// What was printed for `machine`, with what its label says of older ones.
fn printed(server: &Server, machine: Machine, front: Front) -> String {
    let name = match (machine, front) {
        (Machine::Uml, _) => "User-Mode Linux:",
        (_, Front::Blk) => "QEMU 9.2 or later (9.1 and before: reconnect=1 in place of reconnect-ms=1000):",
        _ => "QEMU 9.2 or later (9.1 and before: without ,reconnect-ms=1000):",
    };
    // It takes connections before it has printed all.
    let mut log = server.log();
    while !log.contains(" ready ") {
        std::thread::sleep(Duration::from_millis(10));
        log = server.log();
    }
    let line = line_for(name, &log);
    match (machine, front) {
        (Machine::Qemu7, Front::Blk) => line.replace("reconnect-ms=1000", "reconnect=1"),
        (Machine::Qemu7, _) => line.replace(",reconnect-ms=1000", ""),
        _ => line,
    }
}

/// The line behind `name`, without the dots at its end.
pub(super) fn line_for(name: &str, log: &str) -> String {
    let lines = log.lines().skip_while(|line| *line != name).skip(1);
    let mut command = String::new();
    for line in lines {
        let (line, goes_on) = line.strip_suffix('\\').map_or((line, false), |line| (line, true));
        command += line;
        if !goes_on {
            return command.trim().strip_suffix("...").expect("room for more").to_owned();
        }
    }
    panic!("no line for {name}\n{log}");
}

/// What a user adds: a kernel, an initramfs, and consoles.
fn added(machine: Machine, front: Front, folder: &Path) -> String {
    let cache = Cache::get();
    let (kernel, initramfs, folder) = (cache.kernel(), cache.initramfs.display(), folder.display());
    let modules = format!("quiet panic=-1 blk.modules={},sd_mod,ext4", front.driver());
    if machine == Machine::Uml {
        return format!(
            "initrd={initramfs} uml_dir={folder}/ con0=null,fd:2 con1=fd:0,fd:1 con=null ssl=null {modules} blk.port=tty1"
        );
    }
    // QEMU 7.2.22 leaves rubbish in EFLAGS after CMPXCHG16B, from which Linux 6.12 returns with a fault.
    let cpu = if machine == Machine::Qemu7 { "max,-cx16" } else { "max" };
    format!(
        "-accel tcg -cpu {cpu} -nodefaults -display none -no-reboot -serial file:{folder}/kernel \
         -chardev stdio,id=port,signal=off -serial chardev:port -kernel {} -initrd {initramfs} \
         -append 'console=ttyS0 {modules} blk.port=ttyS1'",
        kernel.display()
    )
}

/// The program of the line is found as any is.
fn path(machine: Machine) -> String {
    let cache = Cache::get();
    let folder = match machine {
        Machine::Uml => cache.file("uml/unpacked/usr/bin"),
        Machine::Qemu7 => cache.file("qemu7/bin"),
        Machine::Qemu11 => cache.file("qemu11/bin"),
    };
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default())
}

fn attaches_as_printed(machine: Machine) {
    for front in Front::VHOST_USER {
        let server = Server::start(Serve::new(front, "writeback", 16 << 20));
        let mut line = printed(&server, machine, front);
        let mut guest = Guest::start_by(&Boot::new(machine, front, &server.socket()), |folder| {
            let _ = write!(line, "{}", added(machine, front, folder));
            let mut command = Command::new("sh");
            command.arg("-c").arg(&line).env("PATH", path(machine)).env("TMPDIR", folder);
            command
        });
        let disk = front.disk();
        assert_eq!(guest.cat(&format!("/sys/block/{disk}/size")), (16 << 11).to_string());
        let compare = format!("agent compare /dev/{disk} 4194304 16384 8 7");
        assert_eq!(guest.sh(&compare), "=COMPARED 4194304 0");
        guest.power_off();
        say!("{:11} on {}: attached by the line as it is printed", front.name(), machine.name());
    }
}

#[test]
fn attach_uml_as_printed() {
    attaches_as_printed(Machine::Uml);
}

#[test]
fn attach_qemu11_as_printed() {
    attaches_as_printed(Machine::Qemu11);
}

#[test]
fn attach_qemu7_as_printed() {
    attaches_as_printed(Machine::Qemu7);
}
