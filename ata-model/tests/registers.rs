//! Registers, identity and non-data commands.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::unreachable
)]

mod rig;

use ata_model::DriveConfig;
use ata_model::command::{Row, TABLE};
use blk_core::bus::Width;
use blk_core::op::Op;
use blk_core::snapshot::{SnapshotError, load, save};
use blk_core::storage::{Cache, Storage};
use rig::{DRQ, ERROR, Ide, READY, SECTORS, cmd, drive, ide, isa_channel, one_drive};

fn two_drives() -> Ide {
    ide([drive(0), drive(1), None, None], Cache::WriteBack)
}

#[test]
fn the_signature_is_there_after_power_on() {
    let mut rig = one_drive(Cache::WriteBack);
    let registers: Vec<u8> = (1..8).map(|offset| rig.input(0, offset)).collect();
    assert_eq!(registers, [0x01, 1, 1, 0, 0, 0xa0, READY]);
}

#[test]
fn a_software_reset_keeps_busy_while_srst_is_set_and_leaves_the_signature() {
    let mut rig = two_drives();
    rig.out(0, 6, 0x50);
    rig.out(0, 3, 0x77);
    rig.out(1, 2, 0x04);
    rig.poll();
    assert_eq!(rig.alternate_status(), 0x80);
    rig.out(1, 2, 0x00);
    assert_eq!((rig.alternate_status(), rig.input(0, 6)), (READY, 0xa0), "device 0 is selected");
    assert_eq!((rig.error(), rig.input(0, 3)), (0x01, 0x01));
    assert_eq!(rig.irq, 0, "a reset raises no interrupt");
}

#[test]
fn hob_shows_the_previous_content_until_the_next_write() {
    let mut rig = one_drive(Cache::WriteBack);
    for value in [0x12, 0x34] {
        rig.out(0, 2, value);
    }
    assert_eq!(rig.input(0, 2), 0x34);
    rig.out(1, 2, 0x80);
    assert_eq!(rig.input(0, 2), 0x12);
    rig.out(0, 3, 0);
    assert_eq!(rig.input(0, 2), 0x34, "a write to the command block clears HOB");
}

#[test]
fn device_0_answers_for_a_missing_device_1() {
    let mut rig = one_drive(Cache::WriteBack);
    rig.out(0, 6, 0x50);
    rig.out(0, 2, 0x55);
    assert_eq!((rig.status(), rig.alternate_status()), (0, 0), "no device: status 00h");
    assert_eq!(rig.input(0, 2), 0x55, "the other registers are device 0's");
    rig.issue(cmd(0xec).device(0x50));
    assert_eq!((rig.status(), rig.irq), (0, 0), "nobody takes the command");
    assert_eq!(rig.identify(0x40)[49] & 0x100, 0x100, "device 0 is there");
}

#[test]
fn nothing_answers_for_a_missing_device_0_or_an_empty_channel() {
    let mut rig = ide([None, drive(1), None, None], Cache::WriteBack);
    assert_eq!((rig.status(), rig.input(0, 2)), (0x7f, 0x7f));
    assert_eq!(rig.identify(0x50)[49] & 0x200, 0x200);
    rig.out(0, 6, 0x50);
    assert_eq!(rig.status(), READY);
    for offset in 1..8 {
        assert_eq!(rig.input(2, offset), 0x7f, "secondary channel, register {offset}");
        rig.out(2, offset, 0xec);
    }
    assert_eq!(rig.read(2, 0, Width::Word), 0xffff);
    rig.out(3, 2, 0x04);
    rig.out(3, 2, 0x00);
    assert_eq!(rig.input(3, 2), 0x7f);
    rig.poll();
}

#[test]
fn two_drives_have_settings_and_media_of_their_own() {
    let mut rig = two_drives();
    rig.disks[1].bytes[..512].fill(0xbb);
    assert_eq!(rig.run(cmd(0xef).features(0x82)), READY);
    let (first, second) = (rig.identify(0x40), rig.identify(0x50));
    assert_eq!((first[85] & 0x20, second[85] & 0x20), (0, 0x20));
    assert_eq!(rig.pio_in(cmd(0x20).count(1).device(0x50), 512, 1), [0xbb; 512]);
    assert_eq!(rig.disks[0].log, [Op::Flush]);
}

#[test]
fn an_interrupt_waits_while_the_other_device_is_selected_or_nien_is_set() {
    let mut rig = two_drives();
    rig.issue(cmd(0xe7));
    assert_eq!(rig.irq, 1);
    rig.out(0, 6, 0x50);
    assert_eq!(rig.irq, 0);
    rig.out(0, 6, 0x40);
    assert_eq!(rig.irq, 1);
    rig.out(1, 2, 0x02);
    assert_eq!(rig.irq, 0);
    rig.alternate_status();
    rig.out(1, 2, 0x00);
    assert_eq!(rig.irq, 1, "Alternate Status acknowledges nothing");
    rig.status();
    assert_eq!(rig.irq, 0);
}

#[test]
fn a_command_takes_back_an_interrupt_that_was_not_acknowledged_and_raises_its_own() {
    let mut rig = one_drive(Cache::WriteBack);
    rig.issue(cmd(0xe7));
    assert_eq!((rig.irq, rig.input(4, 2)), (1, 0x24));
    rig.out(4, 2, 0x24);
    rig.out(0, 7, 0xe7);
    rig.poll();
    assert_eq!((rig.irq, rig.input(4, 2)), (1, 0x24), "the bus master has seen the second one too");
    rig.disks[0].hold = true;
    rig.out(0, 7, 0xe7);
    assert_eq!(rig.irq, 0);
}

#[test]
fn each_channel_interrupts_for_itself() {
    let mut rig = ide([drive(0), None, drive(2), None], Cache::WriteBack);
    rig.out(2, 6, 0x40);
    rig.out(2, 7, 0xe7);
    rig.poll();
    assert_eq!((rig.irq, rig.disks[2].log.len()), (1, 1));
    assert_eq!((rig.input(2, 7), rig.irq), (READY, 0));
}

#[test]
fn the_diagnostics_run_on_both_devices_and_select_device_0() {
    let mut rig = two_drives();
    rig.run(cmd(0x01).device(0x50));
    rig.issue(cmd(0x90).device(0x50));
    assert_eq!((rig.irq, rig.status(), rig.error(), rig.input(0, 6)), (1, READY, 0x01, 0xa0));
    rig.out(0, 6, 0x10);
    assert_eq!((rig.status(), rig.error(), rig.input(0, 2)), (READY, 0x01, 1));
    let mut alone = one_drive(Cache::WriteBack);
    alone.issue(cmd(0x90).device(0x50));
    assert_eq!((alone.irq, alone.status(), alone.error()), (1, READY, 0x01), "also for a missing device 1");
}

#[test]
fn registers_are_not_written_while_a_command_runs() {
    let mut rig = two_drives();
    rig.disks[0].hold = true;
    rig.issue(cmd(0xe7));
    assert!(rig.busy());
    rig.out(0, 6, 0x50);
    rig.out(0, 2, 0x99);
    rig.out(0, 7, 0xec);
    assert!(rig.busy(), "neither the selection nor the command has changed");
    let memory = rig.memory;
    rig.disks[0].release(&memory);
    rig.poll();
    assert_eq!((rig.irq, rig.status()), (1, READY));
    assert_eq!(rig.input(0, 2), 0);
}

#[test]
fn what_is_not_in_the_table_is_aborted_and_what_is_ends() {
    for opcode in 0..=255 {
        let mut rig = one_drive(Cache::WriteBack);
        rig.issue(cmd(opcode).count(1));
        if Row::of(opcode).is_none() {
            assert_eq!((rig.irq, rig.status(), rig.error()), (1, ERROR, 0x04), "{opcode:#x}");
        }
        assert_ne!((opcode, rig.alternate_status()), (0x08, READY), "DEVICE RESET is for packet devices");
        rig.out(1, 2, 0x04);
        rig.out(1, 2, 0x00);
        rig.poll();
        assert_eq!(rig.status(), READY, "{opcode:#x}");
    }
    assert!(Row::of(0xa1).is_none() && Row::of(0xa0).is_none() && Row::of(0x08).is_none());
}

#[test]
fn identify_adds_up_and_says_what_the_drive_is() {
    let mut rig = one_drive(Cache::WriteBack);
    let words = rig.identify(0x40);
    let sum = words.iter().flat_map(|word| word.to_le_bytes()).fold(0_u8, u8::wrapping_add);
    assert_eq!((sum, words[255] & 0xff), (0, 0xa5));
    let text = |words: &[u16]| -> String {
        words.iter().flat_map(|word| word.to_be_bytes()).map(char::from).collect()
    };
    assert_eq!(text(&words[27..47]).trim_end(), "DISK 0");
    assert_eq!(text(&words[10..20]).trim_end(), "SERIAL0");
    assert_eq!(u32::from(words[60]) | u32::from(words[61]) << 16, SECTORS as u32);
    assert_eq!((u64::from(words[100]), words[101]), (SECTORS, 0));
    assert_eq!((words[3], words[6], words[1]), (16, 63, 4));
    for word in [83, 84, 87, 106, 209] {
        assert_eq!(words[word] & 0xc000, 0x4000, "word {word} is valid");
    }
    assert_eq!((words[47], words[75], words[76], words[217]), (0x8010, 0, 0, 1));
    assert_eq!(words[80] & 1 << 7, 1 << 7, "Linux believes in TRIM from ATA-7 on");
}

#[test]
fn capability_bits_are_there_exactly_where_the_commands_are() {
    let mut full = one_drive(Cache::WriteBack);
    let words = full.identify(0x40);
    assert_eq!(words[82] & 0x4069, 0x4069, "NOP, look-ahead, cache, power, SMART");
    assert_eq!(words[83] & 0x3400, 0x3400, "FLUSH CACHE (EXT), 48-bit");
    assert_eq!(words[86] & 0x3400, 0x3400);
    assert_eq!((words[84] & 0x40, words[87] & 0x40), (0x40, 0x40), "FUA");
    assert_eq!((words[49] & 0x100, words[169], words[105]), (0x100, 1, 8));

    let mut plain = isa_channel([drive(0), None]);
    plain.disks[0].info.discard = false;
    let words = plain.identify(0x40);
    assert_eq!((words[49] & 0x100, words[63], words[88], words[169], words[105]), (0, 0, 0, 0, 0));
    assert_eq!(words[84] & 0x40, 0, "without DMA, 3Dh is not there, so neither is the bit for it and CEh");
    let info = plain.disks[0].info;
    for row in TABLE.iter().filter(|row| !row.available(&info, ata_model::command::Interface::Pio)) {
        assert_eq!(plain.run(cmd(row.opcode).count(1).features(1)), ERROR, "{}", row.name());
    }
}

#[test]
fn power_commands_flush_before_the_drive_rests() {
    for opcode in [0xe0, 0xe2, 0x94, 0x96] {
        let mut rig = one_drive(Cache::WriteBack);
        assert_eq!(rig.run(cmd(opcode)), READY);
        assert_eq!(rig.disks[0].log, [Op::Flush], "{opcode:#x}");
        assert_eq!((rig.run(cmd(0xe5)), rig.input(0, 2)), (READY, 0x00), "in standby");
        rig.pio_in(cmd(0x20).count(1), 512, 1);
        assert_eq!((rig.run(cmd(0xe5)), rig.input(0, 2)), (READY, 0xff), "woken by a medium access");
    }
    let mut rig = one_drive(Cache::WriteBack);
    assert_eq!((rig.run(cmd(0xe1)), rig.disks[0].log.len()), (READY, 0));
    assert_eq!(rig.run(cmd(0xe6)), READY);
    assert_eq!(rig.disks[0].log, [Op::Flush]);
    assert_eq!(rig.run(cmd(0xe5)), ERROR, "asleep");
    rig.out(1, 2, 0x04);
    rig.out(1, 2, 0x00);
    assert_eq!((rig.run(cmd(0xe5)), rig.input(0, 2)), (READY, 0x00), "a reset wakes it into standby");
}

#[test]
fn a_standby_whose_flush_fails_is_an_error_and_no_standby() {
    let mut rig = one_drive(Cache::WriteBack);
    rig.disks[0].fail = Some(rig::medium_error(9));
    assert_eq!((rig.run(cmd(0xe0)), rig.error()), (ERROR, 0x04));
    assert_eq!((rig.run(cmd(0xe5)), rig.input(0, 2)), (READY, 0xff));
}

#[test]
fn set_multiple_takes_powers_of_two_that_fit() {
    let mut rig = one_drive(Cache::WriteBack);
    for (blocks, expected) in [(16, READY), (1, READY), (3, ERROR), (32, ERROR), (0, READY)] {
        assert_eq!(rig.run(cmd(0xc6).count(blocks)), expected, "{blocks}");
    }
    assert_eq!(rig.identify(0x40)[59], 0);
    assert_eq!(rig.run(cmd(0xc4).count(1)), ERROR, "READ MULTIPLE without a setting");
    assert_eq!(rig.run(cmd(0xc6).count(4)), READY);
    assert_eq!(rig.identify(0x40)[59], 0x0104);
    rig.disks[0].info.staging_bytes = 1024;
    assert_eq!(rig.identify(0x40)[47], 0x8002);
    assert_eq!(rig.run(cmd(0xc6).count(4)), ERROR, "a block fits the staging buffer");
}

#[test]
fn transfer_modes_are_selected_and_shown() {
    let mut rig = one_drive(Cache::WriteBack);
    for (mode, multiword, ultra) in [(0x45, 0x0007, 0x203f), (0x40, 0x0007, 0x013f), (0x22, 0x0407, 0x003f)] {
        assert_eq!(rig.run(cmd(0xef).features(3).count(mode)), READY);
        let words = rig.identify(0x40);
        assert_eq!((words[63], words[88]), (multiword, ultra), "{mode:#x}");
    }
    for mode in [0x46, 0x23, 0x0d, 0x18, 0xff] {
        assert_eq!(rig.run(cmd(0xef).features(3).count(mode)), ERROR, "{mode:#x}");
    }
    assert_eq!(rig.run(cmd(0xef).features(0x55)), READY);
    assert_eq!((rig.identify(0x40)[82] & 0x40, rig.identify(0x40)[85] & 0x40), (0x40, 0));
    assert_eq!(rig.run(cmd(0xef).features(0xaa)), READY);
    assert_eq!(rig.identify(0x40)[85] & 0x40, 0x40);
    assert_eq!(rig.run(cmd(0xef).features(0x99)), ERROR);
}

#[test]
fn addresses_are_reported_and_checked() {
    let mut rig = one_drive(Cache::WriteBack);
    assert_eq!(rig.run(cmd(0xf8)), READY);
    assert_eq!((rig.input(0, 3), rig.input(0, 4)), (0xff, 0x0f));
    assert_eq!(rig.run(cmd(0x27)), READY);
    assert_eq!(rig.lba48(), SECTORS - 1);
    assert_eq!(rig.run(cmd(0x70).lba(SECTORS - 1)), READY);
    assert_eq!((rig.run(cmd(0x70).lba(SECTORS)), rig.error()), (ERROR, 0x10));
    assert_eq!(rig.run(cmd(0x10)), READY);
    assert_eq!((rig.run(cmd(0x00)), rig.error()), (ERROR, 0x04), "NOP always aborts");
    assert!(rig.disks[0].log.is_empty());
}

#[test]
fn smart_reads_tests_and_logs_within_bounds() {
    let smart = |features: u16| cmd(0xb0).features(features).lba(0xc2_4f00);
    let mut rig = one_drive(Cache::WriteBack);
    assert_eq!(rig.run(cmd(0xb0).features(0xda)), ERROR, "no key");
    assert_eq!((rig.run(smart(0xda)), rig.input(0, 4), rig.input(0, 5)), (READY, 0x4f, 0xc2));
    let sum = |page: &[u8]| page.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
    let data = rig.pio_in(smart(0xd0), 512, 1);
    assert_eq!((sum(&data), data[367], data[370]), (0, 0x11, 1), "self-tests, and a log of errors");
    assert_eq!(rig.run(smart(0xd4).lba(0xc2_4f01)), READY);
    let log = rig.pio_in(smart(0xd5).lba(0xc2_4f06).count(1), 512, 1);
    assert_eq!((log[2], log[508], sum(&log)), (1, 1, 0));
    for (address, count) in [(0x06, 0), (0x06, 2), (0x05, 1), (0xff, 1)] {
        let command = smart(0xd5).lba(0xc2_4f00 | address).count(count);
        assert_eq!((rig.run(command), rig.error()), (ERROR, 0x04), "{address:#x} {count}");
    }
    assert_eq!(rig.run(smart(0xd9)), READY);
    assert_eq!(rig.run(smart(0xd0)), ERROR, "disabled");
    let words = rig.identify(0x40);
    assert_eq!((words[82] & 1, words[85] & 1), (1, 0));
    assert_eq!(rig.run(smart(0xd8)), READY);
}

#[test]
fn the_general_log_directory_is_one_page() {
    let mut rig = one_drive(Cache::WriteBack);
    assert_eq!(rig.pio_in(cmd(0x2f).count(1), 512, 1)[..2], [1, 0]);
    for command in
        [cmd(0x2f).count(2), cmd(0x2f).count(0), cmd(0x2f).count(1).lba(0x0100), cmd(0x2f).count(1).lba(0x10)]
    {
        assert_eq!(rig.run(command), ERROR);
    }
}

#[test]
fn a_translation_changes_what_chs_addresses_mean() {
    let mut rig = one_drive(Cache::WriteBack);
    rig.disks[0].bytes[(5 * 17 + 2) * 512..][..512].fill(0x5a);
    assert_eq!(rig.run(cmd(0x91).count(17).device(0x03)), READY, "4 heads, 17 sectors");
    // Cylinder 1, head 1, sector 3.
    let command = cmd(0x20).count(1).lba(0x0103).device(0x01);
    assert_eq!(rig.pio_in(command, 512, 1), [0x5a; 512]);
    let words = rig.identify(0x40);
    assert_eq!((words[54], words[55], words[56]), ((SECTORS / 68) as u16, 4, 17));
    assert_eq!((words[1], words[3], words[6]), (4, 16, 63), "the default translation stays");
    assert_eq!((rig.run(cmd(0x20).count(1).lba(18).device(0)), rig.error()), (ERROR, 0x10));
}

#[test]
fn a_saved_controller_comes_back_as_it_was() {
    let mut rig = two_drives();
    rig.run(cmd(0xef).features(0x82));
    rig.run(cmd(0xc6).count(8));
    let mut buffer = [0; 2048];
    rig.disks[0].hold = true;
    rig.issue(cmd(0x20).count(1));
    assert_eq!(save(&rig.device, &mut buffer), Err(SnapshotError::NotQuiet), "the storage has a read of it");
    let memory = rig.memory;
    rig.disks[0].release(&memory);
    rig.poll();
    rig.read_words(512);
    let saved = save(&rig.device, &mut buffer).unwrap().to_vec();
    let back = load(&saved).unwrap();
    assert_eq!(back, rig.device);
    rig.device = back;
    let words = rig.identify(0x40);
    assert_eq!((words[59], words[85] & 0x20), (0x0108, 0));
}

#[test]
fn a_data_block_half_read_survives_a_move_to_another_host() {
    let mut rig = one_drive(Cache::WriteBack);
    rig.disks[0].bytes[..512].copy_from_slice(&rig::pattern(5, 512));
    rig.issue(cmd(0x20).count(2));
    let mut data = rig.read_words(100);
    let staged = rig.device.device().controller().channels()[0].staged().unwrap();
    assert_eq!((staged.device, staged.bytes), (0, 512));
    let saved = Storage::<rig::Memory>::staging(&mut rig.disks[0], 0)[..512].to_vec();

    let mut other = one_drive(Cache::WriteBack);
    other.device = rig.device.clone();
    Storage::<rig::Memory>::staging(&mut other.disks[0], 0)[..512].copy_from_slice(&saved);
    data.extend(other.read_words(412));
    assert_eq!(data, rig::pattern(5, 512));
    assert_eq!(other.status(), DRQ, "the second sector");
}

#[test]
fn a_byte_wide_access_of_the_data_register_moves_nothing() {
    let mut rig = one_drive(Cache::WriteBack);
    rig.disks[0].bytes[..512].copy_from_slice(&rig::pattern(1, 512));
    rig.issue(cmd(0x20).count(1));
    assert_eq!((rig.input(0, 0), rig.read(0, 0, Width::Qword)), (0xff, u64::MAX));
    assert_eq!((rig.status(), rig.read_words(512)), (DRQ, rig::pattern(1, 512)));
}

#[test]
fn a_drive_says_its_firmware_revision() {
    for (config, revision) in [
        (DriveConfig::new("DISK", "1"), b"1.0     "),
        (DriveConfig::new("DISK", "1").with_firmware("2.5\n rc10"), b"2.5  rc1"),
    ] {
        let words = isa_channel([Some(config), None]).identify(0x40);
        let text: Vec<u8> = words[23..27].iter().flat_map(|word| word.to_be_bytes()).collect();
        assert_eq!(text, revision);
    }
}
