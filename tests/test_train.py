"Training: what the loss must not depend on, and what Trainer does with it."
import copy, shutil

import cast, pytest, torch
from torch.testing import assert_close

from interlat.collect import collect
from interlat.core import InterlatError
from interlat.message import MessageStore
from interlat.train import ActorArguments, ActorCollator, ActorDataset, ActorTrainer, align_plan, objective, pad_ids, train_actor


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    "Eight games, a random actor, and the messages of a random sender."
    folder = tmp_path_factory.mktemp('train')
    games = cast.games(folder/'games')
    tok = cast.tokenizer(games)
    base = cast.lm(tok)
    store = collect(base, tok, games, MessageStore(folder/'store', sender='random'), max_new_tokens=9, progress=False)
    return games, tok, cast.actor(base, tok), store


def parts(actor, batch, rates):
    with torch.no_grad(): return objective(actor, batch, rates, (0.7, 0.2))


def more_padding(batch, tok):
    "The same batch with five more columns of padding everywhere."
    fill = dict(input_ids=tok.pad_token_id, labels=-100, attention_mask=0, message_mask=False, mix_ids=tok.pad_token_id, plan_ids=tok.pad_token_id, plan_mask=False)
    wide = {k: torch.cat([batch[k], torch.full((len(batch[k]), 5), v, dtype=batch[k].dtype)], 1) for k, v in fill.items()}
    return {**batch, **wide, 'h': torch.nn.functional.pad(batch['h'], (0, 0, 0, 5))}


@pytest.mark.parametrize('rate', [0., 0.5, 1.])
def test_padding_changes_no_part_of_the_loss(scene, rate):
    games, tok, actor, store = scene
    data = ActorDataset(games, tok, store)
    batch = ActorCollator(tok.pad_token_id)([data[i] for i in range(4)])
    rates = torch.full((4,), rate)
    assert_close(parts(actor, batch, rates), parts(actor, more_padding(batch, tok), rates), atol=1e-5, rtol=1e-4)


def test_batch_size_changes_no_row(scene):
    "The loss of a batch is the mean over its tokens, each as if its row were alone."
    games, tok, actor, store = scene
    data, collate = ActorDataset(games, tok, store), ActorCollator(tok.pad_token_id)
    batch = collate([data[i] for i in range(8)])
    keys = ('input_ids', 'attention_mask', 'labels', 'insert_at')
    with torch.no_grad():
        def read(rows):
            b = {k: v[rows] for k, v in batch.items()}
            return actor(**{k: b[k] for k in keys}, message_embeds=actor.embed_message(b['h'], b['message_mask']), message_mask=b['message_mask'])
        whole, rows = read(slice(0, 8)), [read(slice(i, i+1)) for i in range(8)]
    assert_close(whole.logits, torch.cat([r.logits for r in rows]), atol=1e-4, rtol=1e-4)
    n = torch.tensor([len(r.targets) for r in rows])
    assert_close(whole.loss, (torch.stack([r.loss for r in rows])*n).sum()/n.sum(), atol=1e-5, rtol=1e-5)


def test_negatives_are_other_tasks():
    collate = ActorCollator(0)
    for n in (2, 3, 16):
        other = collate.negatives([f't{i}' for i in range(n)])
        assert sorted(other.tolist()) == list(range(n)) and all(i != j for i, j in enumerate(other.tolist()))
    with pytest.raises(InterlatError, match='two different tasks'): collate.negatives(['a', 'a'])


def test_align_plan_is_the_identity_for_one_tokenizer():
    assert align_plan([5, 6, 7], 3) == [5, 6, 7] and align_plan([5, 6], 5) == [5, 5, 5, 6, 6]
    with pytest.raises(InterlatError, match='empty plan'): align_plan([], 2)
    assert pad_ids([[1], [2, 3]], 9).tolist() == [[1, 9], [2, 3]]


def settings(folder, **kw):
    base = dict(max_steps=2, per_device_train_batch_size=4, learning_rate=1e-3, use_cpu=True, save_strategy='no', disable_tqdm=True, logging_steps=1,
                separation_weight_start=.5, separation_weight=.5, lr_scheduler_type='constant', warmup_steps=0)
    return ActorArguments(str(folder), **{**base, **kw})


def test_gradient_accumulation_does_not_scale_the_loss(scene, tmp_path):
    "Two batches of four accumulated have the gradient of their mean; Trainer would make it twice that, if it were not told."
    games, tok, actor, _ = scene
    def gradient(**kw):
        a = copy.deepcopy(actor)
        trainer = ActorTrainer(model=a, args=settings(tmp_path, channel='none', max_steps=1, max_grad_norm=1e9, optim='sgd', learning_rate=1., **kw),
                               data_collator=ActorCollator(tok.pad_token_id), train_dataset=ActorDataset(games[:1]*8, tok))
        trainer.train()
        return [before - after for before, after in zip(actor.base_model.parameters(), a.base_model.parameters())]
    assert_close(gradient(), gradient(gradient_accumulation_steps=2), atol=1e-5, rtol=1e-3)


def test_same_seed_same_weights(scene, tmp_path):
    games, tok, actor, store = scene
    def trained(seed):
        a = copy.deepcopy(actor)
        log = train_actor(a, tok, games, store, settings(tmp_path, seed=seed))
        return log, torch.cat([p.detach().flatten() for p in a.parameters()])
    (log, a), (_, b), (_, c) = trained(0), trained(0), trained(1)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert {'loss', 'task', 'separation', 'alignment'} <= set(log.part)


def test_every_part_of_the_actor_learns(scene, tmp_path):
    games, tok, actor, store = scene
    a = copy.deepcopy(actor)
    train_actor(a, tok, games, store, settings(tmp_path, max_steps=3))
    still = [n for (n, p), q in zip(actor.named_parameters(), a.parameters()) if torch.equal(p, q)]
    assert still == []


def test_text_channel_trains_on_the_plans_tokens(scene, tmp_path):
    games, tok, actor, store = scene
    log = train_actor(copy.deepcopy(actor), tok, games, store, settings(tmp_path, channel='text', max_steps=1))
    assert 'loss' in set(log.part) and 'separation' not in set(log.part)


def test_a_store_of_another_width_is_refused(scene, tmp_path):
    games, tok, actor, store = scene
    wide = cast.actor(cast.lm(tok, hidden_size=64), tok)
    with pytest.raises(InterlatError, match='width 32, wanted width 64'): train_actor(wide, tok, games, store, settings(tmp_path))


def test_an_interrupted_training_ends_with_the_same_weights(scene, tmp_path):
    games, tok, actor, store = scene
    def trained(folder, resume=None, **kw):
        a = copy.deepcopy(actor)
        train_actor(a, tok, games, store, settings(folder, max_steps=4, save_strategy='steps', save_steps=2, lr_scheduler_type='linear', **kw), resume_from_checkpoint=resume)
        return torch.cat([p.detach().flatten() for p in a.parameters()])
    whole = trained(tmp_path/'run')
    shutil.rmtree(tmp_path/'run'/'checkpoint-4')
    assert_close(trained(tmp_path/'run', resume=True), whole, atol=1e-6, rtol=0)
