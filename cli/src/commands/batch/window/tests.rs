//! The window's rules, and properties of whole runs through it.

use muse_proto::v1::{GenerationRequest, ImageInfo};
use proptest::prelude::*;

use super::*;

fn task(number: u64) -> Task {
    let text = br#"{"prompt": "x"}"#;
    Task::new(
        Line::parse(number, text, &GenerationRequest::default()).unwrap(),
        0,
        false,
    )
}

fn image(index: u32) -> Image {
    let info = ImageInfo {
        index,
        ..ImageInfo::default()
    };
    Image {
        info: Some(info),
        ..Image::default()
    }
}

fn job(state: JobState) -> Job {
    Job {
        id: "job".to_owned(),
        state: state.into(),
        ..Job::default()
    }
}

fn refusal(code: Code, seconds: Option<i64>) -> SubmitJobsError {
    SubmitJobsError {
        code: code.into(),
        message: "no".to_owned(),
        retry_delay: seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        ..SubmitJobsError::default()
    }
}

fn sent(number: u64) -> Window {
    let mut window = Window::new(4);
    window.add(task(number));
    window.send().unwrap();
    window
}

#[tokio::test]
async fn what_is_refused_for_now_waits_as_long_as_the_gateway_says() {
    let (mut window, now) = (sent(1), Instant::now());
    let outcome = window.refused(1, &refusal(Code::Unavailable, Some(5)), now, 0.5);
    assert!(matches!(outcome, Outcome::Later(_)), "{outcome:?}");
    let moment = window.next_moment().unwrap();
    assert!(moment >= now + Duration::from_secs(5) && moment <= now + Duration::from_secs(7));
    assert!(!window.has_ready(now) && window.has_ready(moment));
    assert!(window.needs_gateway());
}

#[tokio::test]
async fn what_is_refused_for_good_is_a_failure() {
    let outcome = sent(1).refused(1, &refusal(Code::InvalidArgument, None), Instant::now(), 0.0);
    let Outcome::Failed(entry) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((entry.line, entry.kind), (1, FailureKind::Refused));
}

#[tokio::test]
async fn a_job_whose_pictures_are_gone_is_made_again_under_another_key() {
    let mut window = sent(1);
    for round in 1..=REMAKES {
        window.accepted(1, "job".to_owned());
        let outcome = window.refused(1, &refusal(Code::NotFound, None), Instant::now(), 0.0);
        assert!(matches!(outcome, Outcome::Later(_)), "{outcome:?}");
        assert_eq!(window.send().unwrap().round, round);
    }
    window.accepted(1, "job".to_owned());
    let outcome = window.refused(1, &refusal(Code::NotFound, None), Instant::now(), 0.0);
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
}

#[test]
fn pictures_of_a_stream_that_broke_do_not_count() {
    let mut window = sent(1);
    window.image(1, image(0));
    window.lost();
    window.send().unwrap();
    let outcome = window.ended(1, &job(JobState::Succeeded));
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
}

#[derive(Clone, Debug)]
enum Event {
    Add,
    Send,
    Accept(u64),
    Succeed(u64),
    Fail(u64),
    Refuse(u64, bool),
    Lose,
    Write,
    Wait,
}

fn event() -> impl Strategy<Value = Event> {
    let number = 1..30_u64;
    prop_oneof![
        4 => Just(Event::Add),
        4 => Just(Event::Send),
        2 => number.clone().prop_map(Event::Accept),
        2 => number.clone().prop_map(Event::Succeed),
        1 => number.clone().prop_map(Event::Fail),
        2 => (number, any::<bool>()).prop_map(|(number, passing)| Event::Refuse(number, passing)),
        1 => Just(Event::Lose),
        2 => Just(Event::Write),
        1 => Just(Event::Wait),
    ]
}

proptest! {
    /// Whatever happens: the window holds no more than it may, and every line is settled exactly once.
    #[test]
    fn no_line_is_lost_or_settled_twice(events in prop::collection::vec(event(), 0..300), most in 1_usize..6) {
        let mut window = Window::new(most);
        let (mut added, mut settled, mut now) = (0_u64, Vec::new(), Instant::now());
        let mut written = 0;
        let mut settle = |window: &mut Window, outcome: Outcome| match outcome {
            Outcome::Finished(finished) => settled.push(finished.line.number),
            Outcome::Failed(entry) => {
                window.writing_failure();
                settled.push(entry.line);
            }
            Outcome::Goes | Outcome::Later(_) => {}
        };
        // After the random part, everything is let through to its end.
        let finish = std::iter::once(Event::Wait)
            .chain((0..most).map(|_| Event::Send))
            .chain((1..=300).map(Event::Succeed))
            .chain((0..most).map(|_| Event::Write));
        for event in events.into_iter().chain(finish) {
            match event {
                Event::Add if window.has_room() => {
                    added += 1;
                    window.add(task(added));
                }
                Event::Add => {}
                Event::Send => {
                    window.has_ready(now);
                    window.send();
                }
                Event::Accept(number) => window.accepted(number, "job".to_owned()),
                Event::Succeed(number) => {
                    window.image(number, image(0));
                    let outcome = window.ended(number, &job(JobState::Succeeded));
                    settle(&mut window, outcome);
                }
                Event::Fail(number) => {
                    let outcome = window.ended(number, &job(JobState::Failed));
                    settle(&mut window, outcome);
                }
                Event::Refuse(number, passing) => {
                    let code = if passing { Code::Unavailable } else { Code::InvalidArgument };
                    let outcome = window.refused(number, &refusal(code, None), now, 0.3);
                    settle(&mut window, outcome);
                }
                Event::Lose => window.lost(),
                Event::Write => {
                    written += usize::from(window.writing > 0);
                    window.written();
                }
                Event::Wait => now += Duration::from_secs(60),
            }
            prop_assert!(window.len() <= most, "{} of {}", window.len(), most);
        }
        settled.sort_unstable();
        prop_assert_eq!(&settled, &(1..=added).collect::<Vec<_>>());
        prop_assert!(window.is_empty(), "{:?}", window);
        prop_assert_eq!(written, settled.len());
    }
}
