//! Questions that were asked over a feed's socket and the answers that have come.
//!
//! Several may be under way: a thread asks for the keys of a batch while another asks for the counters, and a signal
//! handler interrupts both with a third. The daemon answers questions of one kind in the order they were asked; answers
//! of two kinds may overtake each other. Who gives up leaves a gap that the late answer falls into.

use std::collections::VecDeque;

use crate::protocol::Reply;

/// The place of one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
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
        let kind = match &reply {
            Reply::Keys { .. } => Kind::Keys,
            Reply::Stats(_) => Kind::Stats,
            _ => return Some(reply),
        };
        let Some(at) = self.asked.iter().position(|asked| asked.kind == kind && asked.answer.is_none())
        else {
            return Some(reply);
        };
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
