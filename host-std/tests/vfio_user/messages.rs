//! The stream: pieces, batches, and what makes no sense.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use blk_core::bus::Width;
use host_std::server::vfio_user::protocol::{
    FDS_MAX, Flags, Header, MESSAGE_MAX, RegionAccess, SmallWrite, command,
};
use host_std::testing::client::ClientError;
use host_std::testing::client::vfio_user::{CONFIG, VfioUser, map};
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::IntoBytes as _;

use super::ahci::{ABAR, Ahci, MSI, refused};
use super::{Disk, pattern};

const OPNOTSUPP: u32 = 95;
const INVAL: u32 = 22;

fn version(
    client: &mut VfioUser,
    major: u16,
    minor: u16,
    text: &[u8],
) -> Result<(u16, u16, String), ClientError> {
    let body = [major.as_bytes(), minor.as_bytes(), text].concat();
    let reply = client.call(command::VERSION, &body, &[])?;
    let text = String::from_utf8(reply[4..].to_vec()).unwrap();
    Ok((u16::from_ne_bytes([reply[0], reply[1]]), u16::from_ne_bytes([reply[2], reply[3]]), text))
}

/// The server closes the connection, without another word than answers that something failed.
fn assert_let_go(client: &VfioUser) {
    let mut stream = client.stream();
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("not let go: {error}"),
    }
}

#[test]
fn versions_are_agreed_on_once_and_first() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut client = disk.stranger();
    assert_eq!(refused(version(&mut client, 1, 0, b"")), OPNOTSUPP);
    assert_eq!(refused(version(&mut client, 0, 0, b"no json\0")), INVAL);
    let (major, minor, text) = version(&mut client, 0, 0, b"").unwrap();
    assert_eq!((major, minor), (0, 0));
    for capability in ["\"max_msg_fds\":16", "\"max_data_xfer_size\":1048576", "\"pgsizes\":4096"] {
        assert!(text.contains(capability), "{text}");
    }
    assert!(!text.contains("migration"), "{text}");
    assert_eq!(refused(version(&mut client, 0, 0, b"")), INVAL, "a second time");
    client.device_info().unwrap();
    drop(client);
    let mut rude = disk.stranger();
    assert_eq!(refused(rude.device_info()), INVAL);
    assert_let_go(&rude);
}

#[test]
fn a_message_may_come_in_any_pieces() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let client = disk.connect();
    let access = RegionAccess { offset: 0, region: CONFIG, count: 4 };
    let message = [Header::command(7, command::REGION_READ, 16).as_bytes(), access.as_bytes()].concat();
    for cut in [1, 8, 15, 16, 17, 31] {
        let (first, second) = message.split_at(cut);
        let mut stream = client.stream();
        stream.write_all(first).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        stream.write_all(second).unwrap();
        let mut reply = [0; 36];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..2], [7, 0]);
        assert_eq!(reply[32..], [0x86, 0x80, 0x22, 0x29], "cut at {cut}");
    }
}

#[test]
fn descriptors_belong_to_the_message_that_they_came_with() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut client = disk.connect();
    let memory = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, 0x2000).unwrap();
    let irq = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    // With and without, one after the other, all before any is read.
    let mut ids = Vec::new();
    for page in 0..8_u64 {
        let fds = [memory.as_fd()];
        let fds = if page % 2 == 0 { &fds[..] } else { &[] };
        let map = map(page * 0x1000, 0x1000, if fds.is_empty() { 0 } else { 0x1000 });
        ids.push(client.send(command::DMA_MAP, map.as_bytes(), fds).unwrap());
    }
    for id in ids {
        client.answer(id).unwrap();
    }
    // With the header alone, the body later.
    let set = [20_u32, 0x24, 1, 0, 1];
    client.send_message(&Header::command(99, command::DEVICE_SET_IRQS, 20), &[], &[irq.as_fd()]).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    (&mut client.stream()).write_all(set.as_bytes()).unwrap();
    client.answer(99).unwrap();
    // Where there may be none.
    let access = RegionAccess { offset: 0, region: CONFIG, count: 4 };
    assert_eq!(refused(client.call(command::REGION_READ, access.as_bytes(), &[irq.as_fd()])), INVAL);
    // More than there may be.
    let many = vec![irq.as_fd(); FDS_MAX + 1];
    let _ = client.send(command::DMA_MAP, map(0x10_0000, 0x1000, 0).as_bytes(), &many);
    assert_let_go(&client);
}

#[test]
fn writes_that_want_no_answer_are_done_before_what_comes_after_them() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut client = disk.connect();
    client.write(CONFIG, 4, Width::Word, 6).unwrap();
    let mut ids = Vec::new();
    for value in 0..1000_u64 {
        client.post(ABAR, 0x100, Width::Dword, value * 1024).unwrap();
        let access = RegionAccess { offset: 0x100, region: ABAR, count: 4 };
        ids.push((client.send(command::REGION_READ, access.as_bytes(), &[]).unwrap(), value));
        if ids.len() == 50 {
            for (id, value) in ids.drain(..) {
                let reply = client.answer(id).unwrap();
                assert_eq!(reply[16..], ((value * 1024) as u32).to_le_bytes());
            }
        }
    }
    // No answer to an error either: the next one is that of the next command.
    client.post(9, 0, Width::Dword, 0).unwrap();
    client.post(ABAR, 1 << 20, Width::Dword, 0).unwrap();
    client.device_info().unwrap();
}

#[test]
fn many_writes_come_in_one_message() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut client = disk.connect();
    let write = |offset, region, count, value: u64| SmallWrite {
        access: RegionAccess { offset, region, count },
        data: value.to_le_bytes(),
    };
    let send = |client: &mut VfioUser, writes: &[SmallWrite]| {
        client.call(
            command::REGION_WRITE_MULTI,
            &[(writes.len() as u64).as_bytes(), writes.as_bytes()].concat(),
            &[],
        )
    };
    let writes = [write(4, CONFIG, 2, 6), write(0x100, ABAR, 4, 0x400), write(0x108, ABAR, 8, 0x1_0000_0800)];
    assert_eq!(send(&mut client, &writes).unwrap(), 3_u64.to_ne_bytes());
    assert_eq!(client.read(ABAR, 0x100, Width::Dword).unwrap(), 0x400);
    assert_eq!(client.read(ABAR, 0x108, Width::Dword).unwrap(), 0x800);
    assert_eq!(client.read(ABAR, 0x10c, Width::Dword).unwrap(), 1);
    // None of them is done if one cannot be.
    let writes = [write(0x100, ABAR, 4, 0x800), write(0x100, ABAR, 9, 0)];
    assert_eq!(refused(send(&mut client, &writes)), INVAL);
    assert_eq!(client.read(ABAR, 0x100, Width::Dword).unwrap(), 0x400);
}

#[test]
fn messages_that_are_malformed_are_answered_or_the_client_is_let_go_and_the_next_is_served() {
    let disk = Disk::new();
    let _served = disk.serve("");
    // Every command with every short body, and with one that is long.
    let mut client = disk.connect();
    for command in 0..20 {
        for bytes in (0..40).chain([100, 5000]) {
            match client.call(command, &vec![0xff; bytes], &[]) {
                Ok(_) if command == command::DEVICE_RESET && bytes == 0 => {}
                // It says nothing but how long an answer may be.
                Ok(_) if command == command::DEVICE_GET_INFO && bytes >= 16 => {}
                Err(ClientError::Errno { .. }) => {}
                other => panic!("command {command} with {bytes} bytes: {other:?}"),
            }
        }
    }
    // The client goes on as if nothing had been.
    let mut ahci = Ahci::new(client, MSI);
    ahci.write(0, &pattern(512, 1)).unwrap();
    drop(ahci);
    // Headers that end the stream.
    let good = Header::command(1, command::DEVICE_GET_INFO, 16);
    for header in [
        Header { bytes: 0, ..good },
        Header { bytes: 15, ..good },
        Header { bytes: MESSAGE_MAX as u32 + 1, ..good },
        Header { bytes: u32::MAX, ..good },
        Header { flags: 2, ..good },
        Header { flags: 0xf, ..good },
        // A reply that nobody waits for.
        Header { flags: Flags::REPLY.bits(), ..good },
    ] {
        let client = disk.connect();
        let _ = client.send_message(&header, &[0; 16], &[]);
        assert_let_go(&client);
    }
    // One that ends in the middle.
    let client = disk.connect();
    client.send_message(&Header { bytes: 1000, ..good }, &[], &[]).unwrap();
    drop(client);
    disk.connect().device_info().unwrap();
}

/// As long as a message may be.
#[test]
fn the_longest_message_is_taken() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut client = disk.connect();
    let access = RegionAccess { offset: 0, region: CONFIG, count: 1 << 20 };
    let body = [access.as_bytes(), &vec![0; 1 << 20]].concat();
    assert_eq!(refused(client.call(command::REGION_WRITE, &body, &[])), INVAL, "longer than the region");
    client.device_info().unwrap();
}
