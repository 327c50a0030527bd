//! What is written where, and what a fault leaves.

use muse_proto::v1::{GenerationRequest, ImageFormat, ImageInfo};
use sha2::{Digest as _, Sha256};

use super::{
    super::{folder::Standing, line::Line},
    *,
};

fn finished(number: u64, text: &str, data: &[u8]) -> Finished {
    let line = Line::parse(number, text.as_bytes(), &GenerationRequest::default()).unwrap();
    let info = |index| ImageInfo {
        index,
        sha256: hex::encode(Sha256::digest(data)),
        ..ImageInfo::default()
    };
    let image = |index| Image {
        info: Some(info(index)),
        data: data.to_vec().into(),
    };
    Finished {
        images: (0..line.count()).map(image).collect(),
        line,
        job_id: "job".to_owned(),
        failed_before: false,
    }
}

fn write(folder: &Folder, orders: Vec<Order>) -> Result<Vec<Done>, Failure> {
    let (sender, receiver) = mpsc::channel(orders.len().max(1));
    let (done, mut told) = mpsc::channel(orders.len() + 1);
    let thread = start(folder, receiver, done).unwrap();
    for order in orders {
        sender.try_send(order).unwrap();
    }
    drop(sender);
    thread.join().unwrap();
    std::iter::from_fn(|| told.blocking_recv()).collect()
}

fn open(path: &Path, shard_size: Option<u64>) -> Folder {
    Folder::open(path, ImageFormat::Png, shard_size).unwrap()
}

#[test]
fn a_result_is_its_pictures_and_an_entry_and_a_later_run_knows_it() {
    let place = tempfile::tempdir().unwrap();
    let folder = open(place.path(), None);
    let result = finished(7, r#"{"prompt": "x", "id": "a", "count": 2}"#, b"picture");
    let line = result.line.clone();
    let mut changed = line.clone();
    changed.digest = "other".to_owned();
    write(&folder, vec![Order::Result(Box::new(result))]).unwrap();
    for name in ["a-0.png", "a-1.png"] {
        assert_eq!(fs::read(place.path().join(name)).unwrap(), b"picture");
    }
    let settled = folder.settled().unwrap();
    assert_eq!(settled.standing(&line), Standing::Done);
    assert_eq!(settled.standing(&changed), Standing::Changed);
    let scratch = fs::read_dir(folder.scratch()).unwrap().count();
    assert_eq!(scratch, 0, "no temporary file is left");
}

#[test]
fn a_damaged_picture_is_no_result() {
    let place = tempfile::tempdir().unwrap();
    let folder = open(place.path(), None);
    let mut result = finished(1, r#"{"prompt": "x"}"#, b"picture");
    result.images[0].data = b"pictur".to_vec().into();
    let failure = write(&folder, vec![Order::Result(Box::new(result))]).unwrap_err();
    assert!(failure.to_string().contains("damaged"), "{failure}");
    assert!(!place.path().join("1.png").exists());
    assert_eq!(fs::read(folder.results()).unwrap(), b"");
}

#[test]
fn a_shards_pictures_are_parts_until_it_is_sealed() {
    let place = tempfile::tempdir().unwrap();
    let folder = open(place.path(), Some(2));
    let result = finished(3, r#"{"prompt": "x", "id": "a"}"#, b"picture");
    let told = write(&folder, vec![Order::Result(Box::new(result))]).unwrap();
    let [Done::Result { stems, .. }] = &told[..] else {
        panic!("{told:?}")
    };
    assert!(folder.parts().join("000001/a.json").exists());
    let shard = shards::Settled {
        number: 1,
        stems: stems.clone(),
    };
    assert_eq!(write(&folder, vec![Order::Shard(shard)]).unwrap(), [Done::Shard]);
    assert!(place.path().join("shard-000001.tar").exists() && !folder.parts().join("000001").exists());
}

#[test]
fn failures_are_known_until_they_are_made_good_and_bad_lines_are_not_kept() {
    let place = tempfile::tempdir().unwrap();
    let folder = open(place.path(), None);
    let line = finished(1, r#"{"prompt": "x"}"#, b"").line;
    let entry = |kind, id: &str, round| {
        Order::Failure(Box::new(FailureEntry {
            line: 1,
            id: Some(id.to_owned()),
            kind,
            message: "no".to_owned(),
            reason: None,
            job_id: None,
            digest: Some(line.digest.clone()),
            round,
        }))
    };
    use super::super::folder::FailureKind::{BadLine, Job, Refused};
    let orders = vec![
        entry(Job, "1", 0),
        entry(BadLine, "3", 0),
        entry(Refused, "2", 0),
        entry(Job, "1", 1),
    ];
    write(&folder, orders).unwrap();
    assert_eq!(folder.settled().unwrap().standing(&line), Standing::Failed(1));
    let mended = Line {
        digest: "other".to_owned(),
        ..line.clone()
    };
    assert_eq!(folder.settled().unwrap().standing(&mended), Standing::New);

    folder.compact_failures(true, |id| id != "2").unwrap();
    let text = fs::read_to_string(folder.failures()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert_eq!(folder.settled().unwrap().standing(&line), Standing::Failed(1));
}

#[test]
fn a_folder_is_one_run_with_one_layout_and_one_musectl_at_a_time() {
    let place = tempfile::tempdir().unwrap();
    let folder = open(place.path(), None);
    let run = folder.run_id().to_owned();
    let second = Folder::open(place.path(), ImageFormat::Png, None).unwrap_err();
    assert!(second.to_string().contains("another musectl"), "{second}");
    drop(folder);
    assert_eq!(open(place.path(), None).run_id(), run);
    for (format, shard_size) in [(ImageFormat::Jpeg, None), (ImageFormat::Png, Some(10))] {
        let other = Folder::open(place.path(), format, shard_size).unwrap_err();
        assert_eq!(other.code(), 2, "{other}");
    }
}
