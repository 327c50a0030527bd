//! One line of the prompts: what it may say, and the request that it means.

use muse_proto::v1::{
    GenerationRequest, GuidanceSchedule, MaskSchedule, Priority, Sampling, Scheduler, TextToImage,
    generation_request::Task,
};
use prost::Message as _;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Bytes of an id: with `-<n>`, an ending and a temporary name's additions it is still a file name.
const ID_BYTES: usize = 200;
/// More pictures of one line than any gateway makes.
const MOST_PICTURES: u32 = 10_000;

/// A line that can be submitted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    /// Counted from 1, blank lines too.
    pub(super) number: u64,
    pub(super) id: String,
    /// Without an idempotency key.
    pub(super) request: GenerationRequest,
    /// Of the request: another digest is another picture.
    pub(super) digest: String,
}

/// The fields of a line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    prompt: String,
    id: Option<Id>,
    negative_prompt: Option<String>,
    count: Option<u32>,
    seed: Option<u64>,
    model: Option<String>,
    priority: Option<String>,
    steps: Option<u32>,
    guidance: Option<f32>,
    guidance_schedule: Option<String>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    choice_temperature: Option<f32>,
    mask_schedule: Option<String>,
    scheduler: Option<String>,
    sr_steps: Option<u32>,
    sr_guidance: Option<f32>,
    sr_guidance_schedule: Option<String>,
    sr_temperature: Option<f32>,
    sr_top_k: Option<u32>,
    sr_choice_temperature: Option<f32>,
    sr_mask_schedule: Option<String>,
    sr_scheduler: Option<String>,
}

/// `"id": 17` means the same as `"id": "17"`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Id {
    Number(u64),
    Text(String),
}

/// A stage's fields, as they are in the line.
struct Settings {
    steps: Option<u32>,
    guidance: Option<f32>,
    guidance_schedule: Option<String>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    choice_temperature: Option<f32>,
    mask_schedule: Option<String>,
    scheduler: Option<String>,
}

impl Line {
    /// Reads a line; `template` holds where it is silent.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn parse(number: u64, text: &[u8], template: &GenerationRequest) -> Result<Self, String> {
        let fields: Fields = serde_json::from_slice(text).map_err(|error| in_words(&error))?;
        if fields.prompt.trim().is_empty() {
            return Err("prompt: must not be empty".to_owned());
        }
        if let Some(count) = fields.count.filter(|count| !(1..=MOST_PICTURES).contains(count)) {
            return Err(format!(
                "count: must be between 1 and {MOST_PICTURES}, not {count}"
            ));
        }
        let id = match fields.id {
            Some(Id::Number(number)) => number.to_string(),
            Some(Id::Text(text)) => text,
            None => number.to_string(),
        };
        check_id(&id).map_err(|fault| format!("id: {fault}"))?;

        let base = Settings {
            steps: fields.steps,
            guidance: fields.guidance,
            guidance_schedule: fields.guidance_schedule,
            temperature: fields.temperature,
            top_k: fields.top_k,
            choice_temperature: fields.choice_temperature,
            mask_schedule: fields.mask_schedule,
            scheduler: fields.scheduler,
        };
        let superres = Settings {
            steps: fields.sr_steps,
            guidance: fields.sr_guidance,
            guidance_schedule: fields.sr_guidance_schedule,
            temperature: fields.sr_temperature,
            top_k: fields.sr_top_k,
            choice_temperature: fields.sr_choice_temperature,
            mask_schedule: fields.sr_mask_schedule,
            scheduler: fields.sr_scheduler,
        };
        let mut request = template.clone();
        base.over(request.base.get_or_insert_default(), "")?;
        superres.over(request.superres.get_or_insert_default(), "sr_")?;
        if let Some(model) = fields.model {
            request.model = model;
        }
        if let Some(word) = fields.priority {
            request.priority = enumerated("priority", "PRIORITY", &word, Priority::from_str_name)? as i32;
        }
        request.seed = Some(fields.seed.unwrap_or_else(|| default_seed(&id, &fields.prompt)));
        request.task = Some(Task::TextToImage(TextToImage {
            prompt: fields.prompt,
            negative_prompt: fields.negative_prompt.unwrap_or_default(),
            count: fields.count,
        }));
        let mut digest = hex::encode(Sha256::digest(request.encode_to_vec()));
        digest.truncate(32);
        Ok(Self {
            number,
            id,
            request,
            digest,
        })
    }

    pub(super) fn prompt(&self) -> &str {
        match &self.request.task {
            Some(Task::TextToImage(task)) => &task.prompt,
            None => "",
        }
    }

    /// Pictures of this line.
    pub(super) fn count(&self) -> u32 {
        match &self.request.task {
            Some(Task::TextToImage(task)) => task.count.unwrap_or(1),
            None => 1,
        }
    }

    /// The file of picture `index`, without its ending.
    pub(super) fn stem(&self, index: u32) -> String {
        if self.count() == 1 {
            self.id.clone()
        } else {
            format!("{}-{index}", self.id)
        }
    }

    /// The same in every run of the same folder, and another for each attempt after a failure that is to be retried.
    pub(super) fn idempotency_key(&self, run: &str, round: u32) -> String {
        let named = format!("{run}\n{}\n{}\n{round}", self.id, self.digest);
        format!("batch-{}", hex::encode(Sha256::digest(named)))
    }
}

impl Settings {
    /// Sets what is said over `sampling`.
    fn over(self, sampling: &mut Sampling, prefix: &str) -> Result<(), String> {
        sampling.steps = self.steps.or(sampling.steps);
        sampling.guidance = self.guidance.or(sampling.guidance);
        sampling.temperature = self.temperature.or(sampling.temperature);
        sampling.top_k = self.top_k.or(sampling.top_k);
        sampling.choice_temperature = self.choice_temperature.or(sampling.choice_temperature);
        if let Some(word) = self.guidance_schedule {
            let field = format!("{prefix}guidance_schedule");
            let parse = GuidanceSchedule::from_str_name;
            sampling.guidance_schedule = enumerated(&field, "GUIDANCE_SCHEDULE", &word, parse)? as i32;
        }
        if let Some(word) = self.mask_schedule {
            let field = format!("{prefix}mask_schedule");
            sampling.mask_schedule =
                enumerated(&field, "MASK_SCHEDULE", &word, MaskSchedule::from_str_name)? as i32;
        }
        if let Some(word) = self.scheduler {
            let field = format!("{prefix}scheduler");
            sampling.scheduler = enumerated(&field, "SCHEDULER", &word, Scheduler::from_str_name)? as i32;
        }
        Ok(())
    }
}

/// A word of an enum: its name in the API in lower case, without the enum's own.
fn enumerated<E>(field: &str, of: &str, word: &str, parse: fn(&str) -> Option<E>) -> Result<E, String> {
    let is_word = word != "unspecified" && word.bytes().all(|byte| byte.is_ascii_lowercase());
    parse(&format!("{of}_{}", word.to_ascii_uppercase()))
        .filter(|_| is_word)
        .ok_or_else(|| format!("{field}: {word:?} is none of its words (see `musectl batch --help`)"))
}

/// The same in every run: the first 8 bytes, big-endian, of SHA-256 over the id, a newline and the prompt.
fn default_seed(id: &str, prompt: &str) -> u64 {
    let digest = Sha256::digest(format!("{id}\n{prompt}"));
    digest
        .iter()
        .take(8)
        .fold(0, |seed, byte| (seed << 8) | u64::from(*byte))
}

/// An id names files inside one folder, and never anything else.
fn check_id(id: &str) -> Result<(), String> {
    if id.is_empty() || id.len() > ID_BYTES {
        return Err(format!("must have 1 to {ID_BYTES} bytes, not {}", id.len()));
    }
    if id.starts_with('.') {
        return Err("must not begin with a dot".to_owned());
    }
    match id
        .chars()
        .find(|letter| letter.is_control() || matches!(letter, '/' | '\\'))
    {
        Some(letter) => Err(format!("must be a plain file name, without {letter:?}")),
        None => Ok(()),
    }
}

/// Without the position's line, which is always 1.
fn in_words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text).to_owned();
    if error.is_data() {
        text
    } else {
        format!("no JSON object: {text} (column {})", error.column())
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Line, String> {
        Line::parse(7, text.as_bytes(), &GenerationRequest::default())
    }

    #[test]
    fn a_line_says_what_generate_can_and_the_rest_comes_from_the_options() {
        let template = GenerationRequest {
            base: Some(Sampling {
                steps: Some(18),
                guidance: Some(2.0),
                ..Sampling::default()
            }),
            ..GenerationRequest::default()
        };
        let text = r#"{"prompt": "a cat", "id": "c", "seed": 18446744073709551615, "count": 2, "guidance": 3.5,
            "negative_prompt": "dogs", "mask_schedule": "arccos", "sr_scheduler": "halton", "priority": "high"}"#;
        let line = Line::parse(1, text.as_bytes(), &template).unwrap();
        let base = line.request.base.unwrap();
        assert_eq!((base.steps, base.guidance), (Some(18), Some(3.5)));
        assert_eq!(base.mask_schedule(), MaskSchedule::Arccos);
        let superres = line.request.superres.unwrap();
        assert_eq!((superres.steps, superres.scheduler()), (None, Scheduler::Halton));
        assert_eq!(line.request.seed, Some(u64::MAX));
        assert_eq!(line.request.priority(), Priority::High);
        assert_eq!(
            (line.count(), line.stem(0), line.stem(1)),
            (2, "c-0".to_owned(), "c-1".to_owned())
        );
    }

    #[test]
    fn an_id_is_the_lines_number_unless_it_has_one() {
        assert_eq!(parse(r#"{"prompt": "x"}"#).unwrap().id, "7");
        assert_eq!(parse(r#"{"prompt": "x", "id": 12}"#).unwrap().id, "12");
        assert_eq!(parse(r#"{"prompt": "x", "id": "ä b"}"#).unwrap().stem(0), "ä b");
    }

    #[test]
    fn a_default_seed_is_the_documented_one() {
        // python3 -c 'import hashlib; print(int.from_bytes(hashlib.sha256(b"7\nx").digest()[:8], "big"))'
        assert_eq!(
            parse(r#"{"prompt": "x"}"#).unwrap().request.seed,
            Some(15_390_778_797_904_348_836)
        );
        let other = parse(r#"{"prompt": "x", "id": "8"}"#).unwrap();
        assert_ne!(
            other.request.seed,
            Some(15_390_778_797_904_348_836),
            "the same prompt twice gives two pictures"
        );
    }

    #[test]
    fn what_is_wrong_with_a_line_is_named() {
        for (text, part) in [
            ("", "no JSON object"),
            ("{", "column 1"),
            ("[1]", "invalid type"),
            (r#"{"prompt": 3}"#, "expected a string"),
            (r#"{}"#, "missing field `prompt`"),
            (r#"{"prompt": " "}"#, "prompt: must not be empty"),
            (r#"{"prompt": "x", "promt": "y"}"#, "unknown field `promt`"),
            (r#"{"prompt": "x", "count": 0}"#, "count: must be"),
            (r#"{"prompt": "x", "seed": -1}"#, "-1"),
            (
                r#"{"prompt": "x", "mask_schedule": "COSINE"}"#,
                "mask_schedule: \"COSINE\"",
            ),
            (
                r#"{"prompt": "x", "sr_scheduler": "unspecified"}"#,
                "sr_scheduler",
            ),
            (r#"{"prompt": "x", "id": ""}"#, "id: must have"),
        ] {
            let fault = parse(text).unwrap_err();
            assert!(fault.contains(part), "{text}: {fault}");
        }
    }

    #[test]
    fn an_id_that_leaves_the_folder_is_refused() {
        for id in [
            "..",
            ".",
            "../x",
            "/etc/passwd",
            "a/b",
            "a\\b",
            ".hidden",
            "a\u{0}b",
            "a\nb",
        ] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        assert!(check_id(&"x".repeat(ID_BYTES)).is_ok());
        assert!(check_id(&"x".repeat(ID_BYTES + 1)).is_err());
    }

    #[test]
    fn a_key_is_the_same_for_the_same_line_in_the_same_run_alone() {
        let line = parse(r#"{"prompt": "x"}"#).unwrap();
        let changed = parse(r#"{"prompt": "y"}"#).unwrap();
        let key = line.idempotency_key("run", 0);
        assert_eq!(key, line.clone().idempotency_key("run", 0));
        let others = [
            line.idempotency_key("run", 1),
            line.idempotency_key("other", 0),
            changed.idempotency_key("run", 0),
        ];
        assert!(!others.contains(&key), "{others:?}");
        assert!(key.len() <= 128, "the gateway's own limit");
    }

    proptest! {
        #[test]
        fn an_accepted_id_is_one_plain_path_component(id in "\\PC{0,8}|[./\\\\a]{0,5}|.{0,4}") {
            if check_id(&id).is_ok() {
                let name = format!("{id}.png");
                let parts: Vec<Component<'_>> = Path::new(&name).components().collect();
                prop_assert_eq!(parts, vec![Component::Normal(name.as_ref())]);
            }
        }

        #[test]
        fn no_line_makes_the_parser_fail(text in ".{0,60}") {
            let _ = parse(&text);
        }
    }
}
