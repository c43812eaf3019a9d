//! Questions that were asked over a feed's socket and the answers that have come.
//!
//! Several may be under way: a thread asks for the keys of a batch while another asks for the counters, and a signal
//! handler interrupts both with a third. The daemon answers questions of one kind in the order they were asked; answers
//! of two kinds may overtake each other. Who gives up leaves a gap that the late answer falls into.
//!
//! [`keys`] and [`stats`] ask and wait, for any [`Caller`].

use std::collections::VecDeque;
use std::time::Duration;

use super::waiting::{Caller, Wanted, until};
use super::{ClientError, Feed};
use crate::protocol::{MAX_KEYS, Reply, Request, Stats};

/// The keys of records.
///
/// # Errors
/// Those of [`until`].
pub fn keys<C: Caller<Of = Feed>>(
    caller: &mut C,
    indices: &[i64],
    timeout: Option<Duration>,
) -> Result<Vec<String>, C::Error> {
    let questions = caller.step(|feed| {
        let requests = indices.chunks(MAX_KEYS).map(|indices| Request::Keys { indices: indices.to_vec() });
        requests.map(|request| feed.ask(Kind::Keys, &request)).collect::<Result<Vec<_>, _>>()
    })?;
    let mut keys = Vec::with_capacity(indices.len());
    for at in 0..questions.len() {
        keys.extend(answer(caller, &questions[at..], timeout, |answer| match answer {
            Reply::Keys { keys } => Ok(keys),
            other => Err(ClientError::protocol(format!("the daemon answered keys with {other:?}"))),
        })?);
    }
    Ok(keys)
}

/// The daemon's counters and the verdict.
///
/// # Errors
/// Those of [`until`].
pub fn stats<C: Caller<Of = Feed>>(caller: &mut C, timeout: Option<Duration>) -> Result<Stats, C::Error> {
    let question = caller.step(|feed| {
        let counters = feed.counters();
        let (data_wait_ns, iteration_ns) = (counters.data_wait_ns, counters.iteration_ns);
        feed.ask(Kind::Stats, &Request::Stats { data_wait_ns, iteration_ns })
    })?;
    answer(caller, &[question], timeout, |answer| match answer {
        Reply::Stats(stats) => Ok(*stats),
        other => Err(ClientError::protocol(format!("the daemon answered stats with {other:?}"))),
    })
}

/// The answer to the first of these questions. Without it, the caller waits for none of them any more.
fn answer<C: Caller<Of = Feed>, T: Send>(
    caller: &mut C,
    questions: &[Question],
    timeout: Option<Duration>,
    read: impl Fn(Reply) -> Result<T, ClientError> + Sync,
) -> Result<T, C::Error> {
    let answer = until(caller, Wanted::Answer, timeout, |caller| {
        caller.step(|feed| feed.answer(questions[0])?.map(&read).transpose())
    });
    if answer.is_err() {
        // A feed that cannot be used any more has nothing to forget.
        let _ = caller.step(|feed| {
            questions.iter().for_each(|&late| feed.forget(late));
            Ok(())
        });
    }
    answer
}

/// The place of one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Hello,
    Attach,
    Keys,
    Stats,
}

#[derive(Debug)]
struct Asked {
    question: Question,
    kind: Kind,
    /// Nobody waits for it any more.
    forgotten: bool,
    answer: Option<Reply>,
}

#[derive(Debug, Default)]
pub(super) struct Questions {
    count: u64,
    asked: VecDeque<Asked>,
}

impl Questions {
    /// A question of this kind is about to be sent.
    pub fn ask(&mut self, kind: Kind) -> Question {
        self.count += 1;
        let question = Question(self.count);
        self.asked.push_back(Asked { question, kind, forgotten: false, answer: None });
        question
    }

    /// Files an answer; gives back what is none, or was not asked for.
    pub fn file(&mut self, reply: Reply) -> Option<Reply> {
        let answers = |kind| match &reply {
            Reply::Welcome { .. } => kind == Kind::Hello,
            Reply::Attached(_) => kind == Kind::Attach,
            // It does not say what it refuses: before there is a feed that is the one open question.
            Reply::Refused { .. } => matches!(kind, Kind::Hello | Kind::Attach),
            Reply::Keys { .. } => kind == Kind::Keys,
            Reply::Stats(_) => kind == Kind::Stats,
            _ => false,
        };
        let open = |asked: &Asked| answers(asked.kind) && asked.answer.is_none();
        let Some(at) = self.asked.iter().position(open) else { return Some(reply) };
        if self.asked[at].forgotten {
            self.asked.remove(at);
        } else {
            self.asked[at].answer = Some(reply);
        }
        None
    }

    /// The answer, once it is here.
    pub fn take(&mut self, question: Question) -> Option<Reply> {
        let at = self.asked.iter().position(|asked| asked.question == question)?;
        self.asked[at].answer.as_ref()?;
        self.asked.remove(at)?.answer
    }

    /// Nobody waits for this answer any more.
    pub fn forget(&mut self, question: Question) {
        if let Some(at) = self.asked.iter().position(|asked| asked.question == question) {
            match self.asked[at].answer {
                Some(_) => drop(self.asked.remove(at)),
                None => self.asked[at].forgotten = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Reply {
        Reply::Keys { keys: vec![text.into()] }
    }

    #[test]
    fn each_question_gets_its_own_answer_whoever_gave_up_and_whatever_came_first() {
        let mut questions = Questions::default();
        let first = questions.ask(Kind::Keys);
        let stats = questions.ask(Kind::Stats);
        let second = questions.ask(Kind::Keys);
        let third = questions.ask(Kind::Keys);
        questions.forget(second);
        assert_eq!(questions.take(first), None);
        for text in ["first", "second", "third"] {
            assert_eq!(questions.file(keys(text)), None);
        }
        assert_eq!(questions.take(third), Some(keys("third")));
        assert_eq!(questions.take(first), Some(keys("first")));
        assert_eq!(questions.take(second), None);
        questions.forget(stats);
        assert_eq!(questions.file(keys("unasked")), Some(keys("unasked")));
        assert_eq!(questions.asked.len(), 1, "the late answer of stats is still to come");
    }
}
