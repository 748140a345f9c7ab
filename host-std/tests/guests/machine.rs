//! What a guest runs on, and what our disk is to it.

use std::path::Path;
use std::process::Command;

use host_std::testing::vm::{Root, Uml};

use crate::cache::Cache;

/// What a guest runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    Uml,
    Qemu7,
    Qemu11,
}

impl Machine {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Uml => "UML",
            Self::Qemu7 => "QEMU 7.2",
            Self::Qemu11 => "QEMU 11",
        }
    }
}

/// What a disk is to the guest: the first two over vhost-user, the others PCI functions over vfio-user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    Blk,
    Scsi,
    BlkPci,
    ScsiPci,
    Ahci,
    Ide,
    /// An IDE controller at the ports and the interrupt of an AT.
    IdeCompatible,
}

impl Front {
    pub(crate) const VHOST_USER: [Self; 2] = [Self::Blk, Self::Scsi];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Blk => "virtio-blk",
            Self::Scsi => "virtio-scsi",
            Self::BlkPci => "virtio-blk-pci",
            Self::ScsiPci => "virtio-scsi-pci",
            Self::Ahci => "AHCI",
            Self::Ide => "PCI IDE",
            Self::IdeCompatible => "PCI IDE, compatible",
        }
    }

    /// The options with which `blk-host serve` makes one; a socket follows.
    pub(crate) const fn options(self) -> &'static [&'static str] {
        match self {
            Self::Blk => &["--device", "virtio-blk", "--socket"],
            Self::Scsi => &["--device", "virtio-scsi", "--socket"],
            Self::BlkPci => &["--device", "virtio-blk-pci", "--vfio-user"],
            Self::ScsiPci => &["--device", "virtio-scsi-pci", "--vfio-user"],
            Self::Ahci => &["--device", "ahci", "--vfio-user"],
            Self::Ide => &["--device", "ide", "--vfio-user"],
            Self::IdeCompatible => &["--device", "ide", "--ide-mode", "compatibility", "--vfio-user"],
        }
    }

    /// The first disk of this kind, in the guest.
    pub(crate) const fn disk(self) -> &'static str {
        match self {
            Self::Blk | Self::BlkPci => "vda",
            _ => "sda",
        }
    }

    /// Whether it is virtio-blk, whose writes have no FUA.
    pub(crate) const fn is_blk(self) -> bool {
        matches!(self, Self::Blk | Self::BlkPci)
    }

    pub(crate) const fn is_ata(self) -> bool {
        matches!(self, Self::Ahci | Self::Ide | Self::IdeCompatible)
    }

    /// A machine that has it, the quickest.
    pub(crate) const fn machine(self) -> Machine {
        match self {
            Self::Blk | Self::Scsi => Machine::Uml,
            _ => Machine::Qemu11,
        }
    }

    /// The guest's driver.
    pub(crate) const fn driver(self) -> &'static str {
        match self {
            Self::Blk | Self::BlkPci => "virtio_blk",
            Self::Scsi | Self::ScsiPci => "virtio_scsi",
            Self::Ahci => "ahci",
            Self::Ide | Self::IdeCompatible => "ata_piix",
        }
    }
}

/// How to boot.
pub(crate) struct Boot<'a> {
    pub(crate) machine: Machine,
    pub(crate) front: Front,
    pub(crate) socket: &'a Path,
    /// Processors, and queues of the device. UML has one processor.
    pub(crate) processors: u32,
    /// Whether the emulator connects again to a server that has gone.
    pub(crate) reconnect: bool,
    /// Whether a reboot boots again, instead of ending the guest.
    pub(crate) reboot: bool,
    /// A module for a file system, where the kernel has it as one.
    pub(crate) filesystem: &'a str,
    /// The module that drives the disk.
    pub(crate) driver: &'a str,
    /// More arguments of the kernel.
    pub(crate) arguments: &'a str,
    /// Whether the firmware (OVMF) starts what is on the disk, instead of the emulator our kernel.
    pub(crate) from_disk: bool,
    /// A disk on the emulator's own AHCI, beside ours: a file, and how to open it as `-drive` takes that.
    pub(crate) peer: Option<&'a str>,
}

impl<'a> Boot<'a> {
    pub(crate) const fn new(machine: Machine, front: Front, socket: &'a Path) -> Self {
        Self {
            machine,
            front,
            socket,
            processors: 1,
            reconnect: false,
            reboot: false,
            filesystem: "ext4",
            driver: front.driver(),
            arguments: match front {
                Front::IdeCompatible => COMPATIBLE,
                _ => "",
            },
            from_disk: false,
            peer: None,
        }
    }

    /// The machine, ready to be started: it boots our kernel, whose shell is on standard input and output. `folder` is for its
    /// files.
    pub(crate) fn command(&self, folder: &Path) -> Command {
        match self.machine {
            Machine::Uml => self.uml(folder),
            Machine::Qemu7 | Machine::Qemu11 => self.qemu(folder),
        }
    }

    pub(crate) fn kernel_arguments(&self, port: &str) -> String {
        let Self { driver, filesystem, arguments, .. } = self;
        format!("quiet panic=-1 blk.port={port} blk.modules={driver},sd_mod,{filesystem} {arguments}")
    }

    fn uml(&self, folder: &Path) -> Command {
        let cache = Cache::get();
        let uml = Uml {
            program: &cache.uml(),
            memory_mib: 256,
            socket: self.socket,
            // VIRTIO 1.3, 5 (Device Types).
            device_id: if self.front == Front::Blk { 2 } else { 8 },
            root: Root::Initramfs(&cache.initramfs),
            arguments: &self.kernel_arguments("tty1"),
        };
        uml.command(folder)
    }

    fn qemu(&self, folder: &Path) -> Command {
        let cache = Cache::get();
        let mut command = qemu(self.machine);
        command.args(["-smp", &self.processors.to_string()]);
        if !self.reboot {
            command.arg("-no-reboot");
        }
        serial_ports(&mut command, folder);
        match self.front {
            Front::Blk => self.vhost_user(&mut command, "vhost-user-blk-pci", "num-queues"),
            Front::Scsi => self.vhost_user(&mut command, "vhost-user-scsi-pci", "num_queues"),
            _ => vfio_user(&mut command, self.socket),
        }
        if let Some(drive) = self.peer {
            command.arg("-drive").arg(format!("if=none,id=peer,format=raw,{drive}"));
            let devices =
                ["-device", "ich9-ahci,id=peer-ahci,addr=6", "-device", "ide-hd,drive=peer,bus=peer-ahci.0"];
            command.args(devices);
        }
        if self.from_disk {
            command.arg("-bios").arg(cache.file("firmware/unpacked/usr/share/ovmf/OVMF.fd"));
        } else {
            command.arg("-kernel").arg(cache.kernel()).arg("-initrd").arg(&cache.initramfs);
            command.arg("-append").arg(self.qemu_arguments());
        }
        command
    }

    /// The kernel's arguments, where an emulator has a serial port for its messages and one for the shell.
    pub(crate) fn qemu_arguments(&self) -> String {
        format!("console=ttyS0 {}", self.kernel_arguments("ttyS1"))
    }

    fn vhost_user(&self, command: &mut Command, device: &str, queues: &str) {
        let again = match (self.reconnect, self.machine) {
            (false, _) => "",
            (true, Machine::Qemu7) => ",reconnect=1",
            (true, _) => ",reconnect-ms=200",
        };
        command.arg("-chardev").arg(format!("socket,id=disk,path={}{again}", self.socket.display()));
        command.arg("-device").arg(format!("{device},chardev=disk,{queues}={}", self.processors));
    }
}

/// The ports and the interrupt of an AT need a kernel that takes the interrupt controller of an AT, and no ACPI to say
/// otherwise; see `legacy` in the guest's `init`.
const COMPATIBLE: &str = "blk.legacy noapic acpi=off";

/// The emulator, with its memory shared and no devices beside those of its chipset, of which no disk controller.
pub(crate) fn qemu(machine: Machine) -> Command {
    // QEMU 7.2.22 leaves rubbish in EFLAGS after CMPXCHG16B, from which Linux 6.12 returns with a fault.
    match machine {
        Machine::Qemu7 => emulator("qemu7", "max,-cx16", 384),
        Machine::Uml | Machine::Qemu11 => emulator("qemu11", "max", 384),
    }
}

/// The same, of a tree, with a processor, and with so many MiB of memory.
pub(crate) fn emulator(tree: &str, processor: &str, memory: u32) -> Command {
    let mut command = Command::new(Cache::get().file(tree).join("bin/qemu-system-x86_64"));
    command.args(["-M", "q35,sata=off,memory-backend=memory", "-accel", "tcg", "-cpu", processor]);
    command.args(["-m", &memory.to_string(), "-object"]);
    command.arg(format!("memory-backend-memfd,id=memory,size={memory}M,share=on"));
    command.args(["-nodefaults", "-display", "none"]);
    command
}

/// A serial port for the kernel's messages, into a file, and one for the shell.
pub(crate) fn serial_ports(command: &mut Command, folder: &Path) {
    command.arg("-serial").arg(format!("file:{}", folder.join("kernel").display()));
    command.args(["-chardev", "stdio,id=port,signal=off", "-serial", "chardev:port"]);
}

/// Plugs in a PCI function that is behind a socket.
pub(crate) fn vfio_user(command: &mut Command, socket: &Path) {
    let device = serde_json::json!({
        "driver": "vfio-user-pci",
        "socket": { "type": "unix", "path": socket },
        "addr": "5",
    });
    command.arg("-device").arg(device.to_string());
}
