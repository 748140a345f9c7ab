//! virtio-scsi: what a successor has to know of a unit, and task management.

use host_std::server::{Lun, ScsiOptions};
use host_std::testing::client::{ClientError, Command, Scsi, ScsiPayload, cdb};
use scsi_model::front::virtio_scsi::Address;
use scsi_model::front::virtio_scsi::wire::{Response, function};

use super::*;

const UNIT: Address = Address { target: 0, lun: 0 };

fn serve(disk: &Disk, faults: &str) -> Served {
    disk.serve_with(faults, |backend| {
        let config = scsi_model::Config::new("TEST", "DISK", "1", "");
        let luns = vec![Lun { target: 0, lun: 0, config, backend }];
        Server::scsi(&ScsiOptions::default(), luns).unwrap()
    })
}

/// A driver, whose unit has said that it was just switched on.
fn connect(disk: &Disk) -> Scsi {
    let mut host = Scsi::connect(disk.path("socket"), options(3)).unwrap();
    host.ready(UNIT).unwrap();
    host
}

#[test]
fn the_latch_of_a_unit_outlives_a_server() {
    let disk = Disk::new();
    let served = serve(&disk, "flush@1:eio");
    let mut host = connect(&disk);
    assert!(served.backend.latched().is_none());
    assert!(matches!(host.flush(UNIT), Err(ClientError::Refused { .. })));
    served.kill();
    let served = serve(&disk, "");
    assert!(served.backend.latched().is_none(), "nobody has told it yet");
    host.session_mut().reconnect().unwrap();
    assert!(served.backend.latched().is_some());
    assert!(matches!(host.flush(UNIT), Err(ClientError::Refused { .. })));
    drop(host);
    // It was that client's to say. The next one was told of nothing.
    let mut host = connect(&disk);
    assert!(served.backend.latched().is_none());
    host.flush(UNIT).unwrap();
}

fn submit_write(host: &mut Scsi, lba: u64) -> Ticket {
    let block = cdb::write_16(lba, 1, false);
    let ticket = host.submit(Scsi::QUEUE, &Command::new(UNIT, &block, ScsiPayload::Out(&[1; 512]))).unwrap();
    host.session_mut().kick(Scsi::QUEUE).unwrap();
    ticket
}

/// What a function has aborted is answered before the function is.
#[test]
fn a_task_is_found_and_aborted_and_a_reset_ends_them_all() {
    let disk = Disk::new();
    let served = serve(&disk, "write:300ms");
    let mut host = connect(&disk);
    let task = submit_write(&mut host, 0);
    served.until_in_flight(usize::from(Scsi::QUEUE), 1);
    let succeeded = Response::FunctionSucceeded as u8;
    assert_eq!(host.manage(function::QUERY_TASK, UNIT, Some(task)).unwrap(), succeeded);
    assert_eq!(host.manage(function::ABORT_TASK, UNIT, Some(task)).unwrap(), Response::Ok as u8);
    let done = host.poll(Scsi::QUEUE).unwrap().expect("it is answered");
    assert_eq!((done.ticket, done.response), (task, Response::Aborted as u8));
    assert_eq!(host.manage(function::QUERY_TASK, UNIT, Some(task)).unwrap(), Response::Ok as u8);
    let tasks: Vec<_> = (0..3).map(|lba| submit_write(&mut host, lba)).collect();
    served.until_in_flight(usize::from(Scsi::QUEUE), 3);
    assert_eq!(host.manage(function::LOGICAL_UNIT_RESET, UNIT, None).unwrap(), Response::Ok as u8);
    for _ in &tasks {
        let done = host.poll(Scsi::QUEUE).unwrap().expect("it is answered");
        assert!(tasks.contains(&done.ticket) && done.response == Response::Reset as u8, "{done:?}");
    }
    let command = Command::new(UNIT, &cdb::TEST_UNIT_READY, ScsiPayload::None);
    let Err(ClientError::Refused { done, .. }) = host.perform(&command) else { panic!("no unit attention") };
    assert_eq!(done.sense.map(|sense| (sense.key, sense.code.0)), Some((6, 0x29)), "reset");
    host.ready(UNIT).unwrap();
    let nobody = Address { target: 9, lun: 0 };
    assert_eq!(host.manage(function::ABORT_TASK_SET, nobody, None).unwrap(), Response::BadTarget as u8);
}

/// Two units over one image, whose reads take so long that both compare before either writes, if they may.
#[test]
fn of_two_units_over_one_image_that_compare_and_write_at_once_one_succeeds() {
    const TURNS: u8 = 100;
    const LBA: u64 = 5;
    let disk = Disk::new();
    let served = disk.serve_with("read:300us", |backend| {
        let unit = |lun| {
            let config = scsi_model::Config::new("TEST", "DISK", "1", "");
            Lun { target: 0, lun, config, backend: Arc::clone(&backend) }
        };
        Server::scsi(&ScsiOptions::default(), vec![unit(0), unit(1)]).unwrap()
    });
    let mut host = Scsi::connect(disk.path("socket"), options(3)).unwrap();
    let units = [0, 1].map(|lun| Address { target: 0, lun });
    units.iter().for_each(|&unit| host.ready(unit).unwrap());
    let mut block = [0_u8; 16];
    (block[0], block[9], block[13]) = (0x89, LBA as u8, 1);
    let mut before = [0; 512];
    for turn in 1..=TURNS {
        // Each writes what is its own, and compares with what either wrote in the turn before.
        let tickets = units.map(|unit| {
            let data = [before, [turn; 512]].concat();
            let mut data: [u8; 1024] = data.try_into().unwrap();
            data[512] = unit.lun as u8;
            host.submit(Scsi::QUEUE, &Command::new(unit, &block, ScsiPayload::Out(&data))).unwrap()
        });
        host.session_mut().kick(Scsi::QUEUE).unwrap();
        let good = tickets.map(|ticket| host.wait_for(ticket).unwrap().is_good());
        assert!(good[0] != good[1], "turn {turn}: {good:?}");
        host.read(units[0], LBA, 512, &mut before).unwrap();
        assert_eq!((before[0], before[1]), (u8::from(good[1]), turn));
    }
    drop(served);
}
