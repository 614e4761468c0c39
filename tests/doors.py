"""The eight doors through which the toolkit uses a language model, each against the obvious way: one row, no cache, no padding, the model's
own forward pass. `python tests/doors.py [FAMILY …]` prints a line a family of transformers, each of them tiny and random."""
import logging, sys, tempfile, warnings

import torch

from interlat.core.basics import *
from interlat.models.lm import *
from interlat.models.trunk import *
from interlat.models.causal_lm import *
from interlat.models.chat import *
from interlat.models.sampling import *
from interlat.agents.collect import read_states, write_plans
from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.agents.speaker import Seat, Speaker
from interlat.training.packing import plain_states, use_packing
from interlat.training.packing import read_states as read_packed
from interlat.compression.reason import LatentStudent, latent_reason

CLOSE = 5e-3 # of the spread of the numbers; float32
NEVER = float('inf')


def apart(found, wanted):
    "The largest difference, as a part of the spread of what is wanted."
    if found.shape != wanted.shape: return NEVER
    return ((found.double() - wanted.double()).abs().max()/wanted.double().std().clamp(min=1e-30)).item()


class Slow:
    "The obvious way."
    def __init__(self, lm): self.lm, self.door = lm, causal_lm(lm)

    def read(self, ids, embeds=None):
        "States (T, D) and logits (T, V) of one row."
        said = []
        hook = self.door.trunk.register_forward_hook(lambda m, args, out: said.append(states_in(out)[0]))
        try:
            if embeds is None: logits = self.lm(input_ids=ids[None]).logits[0]
            elif self.door.input == 'vectors': logits = self.lm(inputs_embeds=embeds[None].clone()).logits[0]
            else:
                with looked_up(self.door.embedding, embeds[None]): logits = self.lm(input_ids=ids[None]).logits[0]
        finally: hook.remove()
        return said[-1], logits

    def write(self, ids, n, embeds=None, ends=()):
        "The next ids, and how far ahead of the second best each was."
        new, ahead = [], []
        for _ in range(n):
            logits = self.read(ids, embeds)[1][-1]
            best = logits.topk(2).values
            ahead.append(((best[0] - best[1])/logits.std()).item())
            new.append(int(logits.argmax()))
            if new[-1] in ends: break
            token = torch.tensor(new[-1:])
            ids = torch.cat([ids, token])
            if embeds is not None: embeds = torch.cat([embeds, self.door.embed(token)])
        return new, ahead


def words_apart(found, wanted, ahead):
    "0 for the same words, up to the first that two were equally good for."
    for a, b, gap in zip(found, wanted, ahead):
        if gap < CLOSE: return 0.
        if a != b: return NEVER
    return 0. if len(found) == len(wanted) else NEVER


class Doors:
    "A model at its doors: each method is one, and returns how far it is from the obvious way."
    def __init__(self, lm, tokenizer, seed=0):
        self.lm, self.tokenizer, self.agent, self.slow, self.door = lm, tokenizer, Agent(lm, tokenizer), Slow(lm), causal_lm(lm)
        g = torch.Generator().manual_seed(seed)
        self.prompts, self.plans = ([torch.randint(5, len(tokenizer) - 3, (n,), generator=g) for n in lengths] for lengths in ((9, 14, 5), (4, 3, 6)))
        self.at, self.h = torch.tensor([3, 6, 0]), torch.randn(3, 5, 12, generator=g)
        self.mask = torch.arange(5) < torch.tensor([[5], [3], [0]])

    def actor(self):
        E, marks = self.door.input_width, dict(zip(('bop_id', 'eop_id'), message_token_ids(self.tokenizer)))
        actor = ModelWithInsertedHiddenState(self.lm, 8, E, 4 if E % 4 == 0 else 1, input_size=12, **marks).eval()
        loud = self.door.embedding.weight.std().item()*10
        actor.processor.adaptive_proj.output_scale.data.fill_(loud)
        return actor

    def padded(self, side):
        ids = torch.zeros(3, 14, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for k, p in enumerate(self.prompts):
            here = slice(0, len(p)) if side == 'right' else slice(14 - len(p), 14)
            ids[k, here], mask[k, here] = p, 1
        return ids, mask

    def spliced(self, actor, blocks):
        "Ids and embeddings of each prompt with its block inside."
        for p, k, e, some in zip(self.prompts, self.at, *blocks):
            block, embeds = e[some.bool()], self.door.embed(p)
            yield torch.cat([p[:k], p.new_full((len(block),), actor.message_id), p[k:]]), torch.cat([embeds[:k], block, embeds[k:]])

    def message(self, actor, h=None):
        "Messages as the actor reads them, and the block that they make."
        embeds = actor.embed_message(self.h if h is None else h, self.mask)
        return embeds, actor.block(embeds, self.mask)

    def collect(self):
        found = read_states(self.lm, [p.tolist() for p in self.prompts], [y.tolist() for y in self.plans])
        return max(apart(h, self.slow.read(torch.cat([p, y[:-1]]))[0][len(p)-1:]) for h, p, y in zip(found, self.prompts, self.plans))

    def write(self):
        ends, found = end_token_ids(self.agent), write_plans(self.agent, [p.tolist() for p in self.prompts], 6)
        return max(words_apart(y, *self.slow.write(p, 6, ends=ends)) for y, p in zip(found, self.prompts))

    def forward(self):
        actor = self.actor()
        embeds, block = self.message(actor)
        found = actor(*self.padded('right'), None, self.at, embeds, self.mask).logits
        return max(apart(z, self.slow.read(*row)[1][-1]) for z, row in zip(found, self.spliced(actor, block)))

    def generate(self):
        actor, ends = self.actor(), end_token_ids(self.agent)
        embeds, block = self.message(actor)
        found = actor.generate(*self.padded('left'), self.at, embeds, self.mask, generation_config=greedy_config(self.agent, 6))
        rows = self.spliced(actor, block)
        return max(words_apart(through_end(y, ends), *self.slow.write(ids, 6, e, ends)) for y, (ids, e) in zip(found.tolist(), rows))

    def speak(self):
        actor, worst = self.actor(), 0.
        speaker, messages = Speaker(Agent(actor, self.tokenizer), 5), self.message(actor)[0]
        said = ['go', 'take the mug', 'open it']
        seats = [Seat(Conversation(self.tokenizer, [dict(role='user', content=t)]), m[:4-i] if i else None) for i, (t, m) in enumerate(zip(said, messages))]
        for news in ('Nothing happens.', 'You see a desk.', ''):
            for seat, words in zip(seats, speaker.speak(seats)):
                ids = torch.tensor(seat.chat.input_ids)
                embeds, k = self.door.embed(ids), seat.chat.insert_at
                if seat.embeds is not None:
                    (block,), _ = actor.block(seat.embeds[None], torch.ones(1, len(seat.embeds)))
                    ids, embeds = torch.cat([ids[:k], ids.new_full((len(block),), actor.message_id), ids[k:]]), torch.cat([embeds[:k], block, embeds[k:]])
                wanted, ahead = self.slow.write(ids, 5, embeds, speaker.ends)
                read = seat.read[len(seat.chat.input_ids):] # all but the last word
                worst = max(worst, words_apart(read, wanted[:len(read)], ahead))
                for turn in (('assistant', words), ('user', news)): seat.chat.add(dict(role=turn[0], content=turn[1]))
        return worst

    def reason(self):
        student, worst = LatentStudent(self.lm, K=3).eval(), 0.
        for states, ids in zip(latent_reason(student, [p.tolist() for p in self.prompts]), self.prompts):
            embeds = self.door.embed(ids)
            last = self.slow.read(ids, embeds)[0][-1]
            for z in states:
                ids, embeds = torch.cat([ids, ids.new_tensor([self.door.stand_in])]), torch.cat([embeds, student.feed(last[None])])
                last = self.slow.read(ids, embeds)[0][-1]
                worst = max(worst, apart(z, last))
        return worst

    def save(self):
        with tempfile.TemporaryDirectory() as folder:
            again = ModelWithInsertedHiddenState.from_pretrained(self.actor().save_pretrained(folder), 'float32', 'cpu')
        return max(apart(again.base_model(input_ids=p[None]).logits[0], self.slow.read(p)[1]) for p in self.prompts)

    def train(self):
        actor, (ids, mask) = self.actor(), self.padded('right')
        labels = torch.where((torch.arange(14) > self.at[:,None]) & mask.bool(), ids, -100)
        chat = dict(input_ids=ids, attention_mask=mask, labels=labels, insert_at=self.at)
        blocks = [self.message(actor, h)[1] for h in (self.h, self.h.flip(1))]
        wanted = []
        for block in blocks:
            for p, (row, embeds), y in zip(self.prompts, self.spliced(actor, block), labels):
                behind = [t - 1 + len(row) - len(p) for t in range(len(p)) if y[t] != -100]
                wanted.append(self.slow.read(row, embeds)[0][behind])
        use_packing(self.lm)
        return apart(read_packed(actor, chat, blocks)[0].flatten(0, 1), torch.cat(wanted))


DOORS = ('collect', 'write', 'forward', 'generate', 'speak', 'reason', 'save', 'train') # the last one may change how the model attends


@torch.no_grad()
def at_the_doors(lm, tokenizer, seed=0):
    "How far each door is from the obvious way; the reason, where the model is refused."
    found = {}
    for name in DOORS:
        try: found[name] = getattr(Doors(lm, tokenizer, seed), name)()
        except InterlatError as e: found[name] = str(e)
    return found


if __name__ == '__main__':
    from families import FAMILIES, CannotBuild, tiny_lm
    warnings.simplefilter('ignore')
    logging.getLogger('interlat').setLevel(logging.ERROR)
    tokenizer, counts = load_tokenizer('tiny-qwen2'), {}
    for family in sys.argv[1:] or FAMILIES:
        try:
            lm = tiny_lm(family, vocab=len(tokenizer))
            if causal_lm(lm).embedding.num_embeddings < len(tokenizer): raise CannotBuild('its vocabulary is its own')
            found = at_the_doors(lm, tokenizer)
            ways = {k: v[0] for k, v in causal_lm(lm).found.items() if isinstance(v[0], str)}
            wrong = {k: v for k, v in found.items() if isinstance(v, float) and not v < CLOSE}
            state = 'wrong' if wrong else 'refused' if any(isinstance(v, str) for v in found.values()) else 'right'
            told = wrong or next((v for v in found.values() if isinstance(v, str)), ways)
        except (CannotBuild, InterlatError) as e: state, told = 'refused', e
        except Exception as e: state, told = 'raises', f'{type(e).__name__}: {e}'
        counts[state] = counts.get(state, 0) + 1
        print(family, state, told, sep='\t', flush=True)
    print(counts)
