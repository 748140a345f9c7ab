//! Each of Linux's drivers on our PCI functions: which one it is, how it is interrupted, how deep it queues; and that what it wrote
//! is in the image.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::guest::{Boot, Front, Guest, SOON};
use crate::probe;
use crate::say;
use crate::server::{Serve, Server};

/// A driver on a function, and what is to be seen of it.
struct Case {
    front: Front,
    driver: &'static str,
    /// More arguments of the server.
    serve: &'static [&'static str],
    /// More arguments of the kernel, behind those of the front.
    arguments: &'static str,
    /// What delivers its interrupts, as /proc/interrupts names it.
    interrupts: &'static str,
    /// Commands at once, of each of the disk's queues.
    depth: Option<u32>,
    /// What the kernel's log says.
    log: &'static str,
    /// Whether data moves by DMA.
    dma: bool,
    bytes: u64,
}

impl Case {
    const fn new(front: Front, interrupts: &'static str) -> Self {
        let depth = match front {
            Front::Ahci => Some(32),
            Front::Ide | Front::IdeCompatible => Some(1),
            _ => None,
        };
        Self {
            front,
            driver: front.driver(),
            serve: &[],
            arguments: "",
            interrupts,
            depth,
            log: "",
            dma: true,
            bytes: 32 << 20,
        }
    }

    fn drives(&self) {
        let begin = Instant::now();
        let Self { front, driver, bytes, .. } = *self;
        let options = format!(",serial={}", probe::SERIAL);
        let serve = Serve { options, arguments: self.serve, ..Serve::new(front, "writeback", bytes) };
        let server = Server::start(serve);
        let socket = server.socket();
        let boot = Boot::new(front.machine(), front, &socket);
        let arguments = format!("{} {}", boot.arguments, self.arguments);
        let mut guest = Guest::boot(&Boot { driver, arguments: &arguments, ..boot });
        let disk = front.disk();

        assert_eq!(driver_of(&mut guest, front), driver, "the driver of the disk");
        assert_eq!(guest.cat(&format!("/sys/block/{disk}/queue/write_cache")), "write back");
        assert_eq!(guest.cat(&format!("/sys/block/{disk}/size")), (bytes / 512).to_string());
        if let Some(depth) = self.depth {
            assert_eq!(guest.cat(&format!("/sys/block/{disk}/device/queue_depth")), depth.to_string());
        }
        if front.is_ata() {
            let log = guest.kernel_log();
            let pio = log.lines().any(|line| line.contains("configured for PIO"));
            assert_eq!(!pio, self.dma, "{log}");
            probe::agrees_with_the_table(&mut guest, front, bytes);
        }
        let threads = self.depth.unwrap_or(32);
        let compare = format!("agent compare /dev/{disk} {bytes} 16384 {threads} 7");
        let compared = guest.sh_within(&compare, Duration::from_secs(600));
        assert_eq!(compared, format!("=COMPARED {bytes} 0"));
        let written = buffered(&mut guest, disk, bytes);
        let whole = guest.sh_within(&format!("sha256sum </dev/{disk}"), SOON);
        let interrupts = guest.sh("cat /proc/interrupts");
        assert!(interrupted(&interrupts, self.interrupts, driver), "by {}:\n{interrupts}", self.interrupts);
        let log = guest.kernel_log();
        assert!(log.contains(self.log), "{}:\n{log}", self.log);
        for bad in ["I/O error", "exception Emask", "failed command", "hard resetting link", "lost interrupt"]
        {
            assert!(!log.contains(bad), "{bad}:\n{log}");
        }
        guest.power_off();
        let image = server.image();
        let (status, _files) = server.stop();
        assert!(status.success(), "{status}");
        assert_eq!(sha256(&image, 0, bytes), first_word(&whole), "the image's hash, here and in the guest");
        assert_eq!(sha256(&image, 0, written.1), written.0, "what the guest had before it wrote it");
        say!(
            "{driver:11} on {:19} {:9}: {} KiB compared, image and guest agree ({} s)",
            front.name(),
            self.interrupts,
            bytes >> 10,
            begin.elapsed().as_secs()
        );
    }
}

/// The driver's name, as the disk's host or, without one, the disk itself has it.
fn driver_of(guest: &mut Guest, front: Front) -> String {
    let command = if front.is_blk() {
        "basename $(readlink -f /sys/block/vda/device/driver)".to_owned()
    } else {
        let host = r"$(readlink -f /sys/block/sda/device | sed 's#.*/\(host[0-9]*\)/.*#\1#')";
        format!("cat /sys/class/scsi_host/{host}/proc_name")
    };
    guest.sh(&command).trim().to_owned()
}

/// Through the page cache: writes what is hashed before, has it made stable, and reads it back from the disk. Returns the hash
/// and how many bytes it is of, from the disk's beginning.
pub(crate) fn buffered(guest: &mut Guest, disk: &str, bytes: u64) -> (String, u64) {
    let count = bytes.min(4 << 20) >> 16;
    guest.sh(&format!("dd if=/dev/urandom of=/tmp/data bs=65536 count={count} 2>/dev/null"));
    let hash = first_word(&guest.sh("sha256sum </tmp/data"));
    let copy = format!(
        "test -b /dev/{disk} && dd if=/tmp/data of=/dev/{disk} bs=65536 conv=notrunc,fsync 2>/dev/null && \
         echo 3 >/proc/sys/vm/drop_caches && dd if=/dev/{disk} bs=65536 count={count} 2>/dev/null | cmp - /tmp/data"
    );
    guest.sh_within(&copy, Duration::from_secs(600));
    guest.sh("echo 3 >/proc/sys/vm/drop_caches");
    (hash, count << 16)
}

/// Whether a device of this driver has been interrupted by such a controller. Columns: number, count for each processor, the
/// controller, and last the names of the devices.
fn interrupted(table: &str, controller: &str, driver: &str) -> bool {
    let name = driver.trim_end_matches("_blk").trim_end_matches("_scsi");
    table.lines().any(|line| {
        let counted =
            line.split_whitespace().nth(1).and_then(|count| count.parse().ok()).is_some_and(|n: u64| n > 0);
        counted && line.contains(controller) && line.contains(name)
    })
}

pub(crate) fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

/// The hash of some bytes of a file.
pub(crate) fn sha256(file: &Path, from: u64, bytes: u64) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = std::fs::File::open(file).expect("an image");
    file.seek(SeekFrom::Start(from)).expect("a place in it");
    let mut hasher = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sha256sum, which is in coreutils");
    let mut input = hasher.stdin.take().expect("its input");
    let copied = std::io::copy(&mut file.take(bytes), &mut input).expect("hashed");
    drop(input);
    assert_eq!(copied, bytes, "bytes of the image");
    let output = hasher.wait_with_output().expect("a hash");
    first_word(&String::from_utf8_lossy(&output.stdout))
}

#[test]
fn ahci_with_a_message_for_each_port() {
    Case::new(Front::Ahci, "PCI-MSIX-").drives();
}

#[test]
fn ahci_with_msi() {
    Case { serve: &["--ahci-messages", "one"], ..Case::new(Front::Ahci, "PCI-MSI-") }.drives();
}

#[test]
fn ahci_with_intx() {
    Case { arguments: "pci=nomsi", ..Case::new(Front::Ahci, "IO-APIC") }.drives();
}

#[test]
fn ata_piix_native() {
    Case::new(Front::Ide, "IO-APIC").drives();
}

#[test]
fn ata_piix_with_ultra_dma_of_a_piix4() {
    let case = Case::new(Front::Ide, "IO-APIC");
    Case { serve: &["--ide-chip", "piix4"], log: "PATA max UDMA/33", ..case }.drives();
}

#[test]
fn ata_piix_at_1f0_and_irq_14() {
    Case::new(Front::IdeCompatible, "XT-PIC").drives();
}

/// The driver for controllers that nobody knows: it takes the transfer modes that the firmware has set, as bits 5 and 6 of the
/// bus master's status say.
#[test]
fn ata_generic_native() {
    let case = Case::new(Front::Ide, "IO-APIC");
    Case { driver: "ata_generic", arguments: "ata_generic.all_generic_ide=1", ..case }.drives();
}

/// Programmed I/O at the ports of an AT. Every word is an exit of the emulator and a message: a little data takes long.
#[test]
fn pata_legacy_pio() {
    let case = Case::new(Front::IdeCompatible, "XT-PIC");
    let arguments = "pata_legacy.all=1 pata_legacy.probe_mask=1";
    Case { driver: "pata_legacy", arguments, dma: false, bytes: 128 << 10, ..case }.drives();
}

#[test]
fn virtio_blk_pci() {
    Case::new(Front::BlkPci, "PCI-MSIX").drives();
}

#[test]
fn virtio_scsi_pci() {
    Case::new(Front::ScsiPci, "PCI-MSIX").drives();
}

#[test]
fn virtio_blk_pci_with_intx() {
    Case { arguments: "pci=nomsi", ..Case::new(Front::BlkPci, "IO-APIC") }.drives();
}

/// 32 reads that each take so long end together, which they can only do if they were under way together.
#[test]
fn ncq_has_32_commands_under_way() {
    const HELD: Duration = Duration::from_millis(1500);
    let options = format!(",workers=32,fault=read@401+:{}ms", HELD.as_millis());
    let server = Server::start(Serve { options, ..Serve::new(Front::Ahci, "none", 32 << 20) });
    let mut guest = Guest::boot(&Boot::new(Front::Ahci.machine(), Front::Ahci, &server.socket()));
    // The kernel's own first reads are not held; whatever is missing of the 400 is read now.
    guest.sh("n=0; while test $n -lt 400; do dd if=/dev/sda of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null; n=$((n+1)); done");
    let all = "for n in $(seq 0 31); do dd if=/dev/sda of=/dev/null bs=4096 count=1 skip=$((n*16)) iflag=direct 2>/dev/null & done; wait";
    let begin = Instant::now();
    guest.sh(all);
    let took = begin.elapsed();
    assert!(took >= HELD && took < HELD * 4, "32 reads of {HELD:?} took {took:?}");
    guest.power_off();
    say!("ahci: 32 reads of {HELD:?} took {took:?} together");
}
