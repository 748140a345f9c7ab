//! What hdparm and smartctl read of a drive, beside the command table of which the drive is made.

use ata_model::command::{Advertised, Needs, TABLE};

use crate::guest::{Front, Guest};

pub(crate) const SERIAL: &str = "GUEST-0001";

/// What hdparm prints for a bit of IDENTIFY DEVICE data; nothing for one that it has no line for.
fn words(bit: Advertised) -> Option<&'static str> {
    Some(match bit {
        Advertised::Both(82, 0) => "SMART feature set",
        Advertised::Both(82, 3) => "Power Management feature set",
        Advertised::Both(82, 14) => "NOP cmd",
        Advertised::Both(83, 10) => "48-bit Address feature set",
        Advertised::Both(83, 12) => "Mandatory FLUSH_CACHE",
        Advertised::Both(83, 13) => "FLUSH_CACHE_EXT",
        Advertised::Both(84, 0) => "SMART error logging",
        Advertised::Both(84, 1) => "SMART self-test",
        Advertised::Both(84, 5) => "General Purpose Logging feature set",
        Advertised::Both(84, 6) => "WRITE_{DMA|MULTIPLE}_FUA_EXT",
        Advertised::Bit(49, 8) => return None,
        Advertised::Bit(76, 8) => "Native Command Queueing (NCQ)",
        Advertised::Bit(169, 0) => "Data Set Management TRIM supported",
        other => panic!("what does hdparm print for {other:?}?"),
    })
}

/// Whether a line of a feature is there, with the star of what is enabled.
fn enabled(printed: &str, feature: &str) -> bool {
    printed.lines().any(|line| line.contains(feature) && line.trim_start().starts_with('*'))
}

/// What follows a title at the beginning of a line.
fn field<'a>(printed: &'a str, title: &str) -> &'a str {
    let value = printed.lines().find_map(|line| line.trim().strip_prefix(title));
    value.unwrap_or_else(|| panic!("no {title}\n{printed}")).trim()
}

/// Reads the drive with both programs, and compares.
pub(crate) fn agrees_with_the_table(guest: &mut Guest, front: Front, bytes: u64) {
    let hdparm = guest.sh("hdparm -I /dev/sda 2>&1");
    for row in TABLE.iter().filter(|row| front == Front::Ahci || row.needs != Needs::Serial) {
        for feature in row.advertised.iter().flatten().filter_map(|&bit| words(bit)) {
            assert!(enabled(&hdparm, feature), "{}: {feature}\n{hdparm}", row.name());
        }
    }
    assert!(enabled(&hdparm, "Write cache"), "{hdparm}");
    assert!(hdparm.contains("Checksum: correct"), "{hdparm}");
    let sectors = (bytes / 512).to_string();
    assert_eq!(field(&hdparm, "LBA    user addressable sectors:"), sectors);
    assert_eq!(field(&hdparm, "LBA48  user addressable sectors:"), sectors);
    assert_eq!(field(&hdparm, "Serial Number:"), SERIAL);
    if front == Front::Ahci {
        assert_eq!(field(&hdparm, "Queue depth:"), "32");
    }

    let output = guest.run("smartctl -a /dev/sda 2>&1");
    let smartctl = output.text();
    // Bits 0 to 2: the command line, the device, a command to it (smartctl(8), EXIT STATUS); 3 to 7 tell of an ailing drive.
    assert_eq!(output.status, 0, "{smartctl}");
    assert_eq!(field(&smartctl, "Serial Number:"), SERIAL);
    assert_eq!(field(&smartctl, "Device Model:"), field(&hdparm, "Model Number:"));
    assert_eq!(field(&smartctl, "Firmware Version:"), field(&hdparm, "Firmware Revision:"));
    let capacity: String = field(&smartctl, "User Capacity:").chars().take_while(|c| *c != ' ').collect();
    assert_eq!(capacity.replace(',', ""), bytes.to_string());
    assert_eq!(field(&smartctl, "SMART overall-health self-assessment test result:"), "PASSED");
    let states: Vec<_> = smartctl.lines().filter(|line| line.starts_with("SMART support is:")).collect();
    assert!(states.iter().any(|line| line.contains("Enabled")), "{states:?}");

    let model = guest.cat("/sys/block/sda/device/model");
    // The kernel's SCSI name of it is cut to 16 characters (SAT, INQUIRY).
    assert!(field(&hdparm, "Model Number:").starts_with(&model), "{model}");
}
